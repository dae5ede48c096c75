// Follows a stream with a client in Go, and prints each event as a line of JSON: go run . CLIENT URL. The lines that a
// client needs are those of docs/clients.md.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	r3labs "github.com/r3labs/sse/v2"
	"github.com/tmaxmax/go-sse"
)

func take(name, id, data string) {
	if name == "" {
		name = "message"
	}
	line, _ := json.Marshal(map[string]string{"type": name, "id": id, "data": data})
	fmt.Println(string(line))
}

func followGoSSE(url string) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		log.Fatal(err)
	}
	connection := sse.NewConnection(request)
	connection.Buffer(nil, 1<<20)
	connection.SubscribeToAll(func(event sse.Event) {
		take(event.Type, event.LastEventID, event.Data)
	})
	log.Print(connection.Connect())
}

// wholeEvents passes on whole events only: r3labs/sse would deliver the half of one that was cut in two.
type wholeEvents struct {
	io.Closer
	lines *bufio.Reader
	event []byte
	whole bytes.Buffer
}

func (body *wholeEvents) Read(into []byte) (int, error) {
	for body.whole.Len() == 0 {
		line, err := body.lines.ReadBytes('\n')
		if err != nil {
			return 0, err
		}
		body.event = append(body.event, line...)
		if len(line) == 1 {
			body.whole.Write(body.event)
			body.event = body.event[:0]
		}
	}
	return body.whole.Read(into)
}

func followR3labs(url string) {
	client := r3labs.NewClient(url, r3labs.ClientMaxBufferSize(1<<20))
	client.ResponseValidator = func(_ *r3labs.Client, response *http.Response) error {
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("the stream was refused: %s", response.Status)
		}
		response.Body = &wholeEvents{Closer: response.Body, lines: bufio.NewReader(response.Body)}
		return nil
	}
	for {
		err := client.SubscribeRaw(func(event *r3labs.Event) {
			take(string(event.Event), string(event.ID), string(event.Data))
		})
		log.Print("the stream has ended: ", err)
		time.Sleep(2 * time.Second)
	}
}

func main() {
	client, url := os.Args[1], os.Args[2]
	switch client {
	case "tmaxmax/go-sse":
		followGoSSE(url)
	case "r3labs/sse":
		followR3labs(url)
	default:
		log.Fatal("there is no client ", client)
	}
}
