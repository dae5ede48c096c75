// Prints a token for a user, as a server in Go would sign it.
package main

import (
	"fmt"
	"log"
	"os"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

func tokenFor(user string) (string, error) {
	claims := jwt.MapClaims{
		"sub": user,
		"exp": time.Now().Add(10 * time.Minute).Unix(),
		"roomcast": map[string][]string{
			"subscribe": {"chat.*", "user.{sub}"},
			"publish":   {"chat.*"},
		},
	}
	secret := []byte(os.Getenv("ROOMCAST_JWT_HS256_SECRET"))
	return jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(secret)
}

func main() {
	token, err := tokenFor(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(token)
}
