// Uses the client that openapi-generator has generated for Go, as an application would.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"use/roomcast"
)

func check(what string, holds bool) {
	if !holds {
		fmt.Println("not ok - " + what)
		os.Exit(1)
	}
	fmt.Println("ok - " + what)
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func problem(err error) roomcast.Problem {
	var answer *roomcast.GenericOpenAPIError
	if !errors.As(err, &answer) {
		panic(fmt.Sprint("no problem document: ", err))
	}
	return answer.Model().(roomcast.Problem)
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	settings := roomcast.NewConfiguration()
	settings.Servers = roomcast.ServerConfigurations{{URL: os.Getenv("ROOMCAST_URL")}}
	client := roomcast.NewAPIClient(settings)
	name := fmt.Sprintf("openapi-generator-go-%d", time.Now().UnixNano())

	event := roomcast.NewPublish(map[string]int{"n": 1})
	event.SetEvent("tick")
	published, _, err := client.RoomsAPI.PublishEvent(ctx, name).Publish(*event).Execute()
	must(published, err)
	log, _, err := client.RoomsAPI.ListEvents(ctx, name).Execute()
	must(log, err)
	check("the log holds what was published", len(log.Events) == 1 && log.Events[0].Id == published.Id)
	check("the log has no gap", log.Gap.Get() == nil)

	_, answer, err := client.HashesAPI.GetField(ctx, name, "colour").Execute()
	check("a field that is absent is 404", answer.StatusCode == 404)
	check("the 404 is a problem document", problem(err).Code == roomcast.FIELD_NOT_FOUND)

	value := func(text string) roomcast.SetField { return roomcast.SetField{Value: &text} }
	_, answer, err = client.HashesAPI.SetField(ctx, name, "colour").SetField(value("green")).Execute()
	check("a new field is 201", err == nil && answer.StatusCode == 201)
	conditional := client.HashesAPI.SetField(ctx, name, "colour").IfMatch(answer.Header.Get("ETag"))
	_, answer, err = conditional.SetField(value("red")).Execute()
	check("a write whose condition holds is done", err == nil && answer.StatusCode == 200)
	_, answer, err = conditional.SetField(value("blue")).Execute()
	check("a write whose condition does not hold is 412", answer.StatusCode == 412)
	refused := problem(err)
	check("the 412 has the present value", refused.Present.GetValue() == "red")

	one, two := "1", "2"
	patch := client.HashesAPI.PatchFields(ctx, name)
	_, _, err = patch.RequestBody(map[string]*string{"a": &one, "b": &one}).Execute()
	must(0, err)
	body := map[string]*string{"a": &two, "colour": nil}
	patched, _, err := patch.RequestBody(body).Remove([]string{"b"}).Execute()
	must(patched, err)
	check("a patch sets and removes", patched.Replaced == 1 && patched.Removed == 2)
	list, _, err := client.HashesAPI.ListFields(ctx, name).Execute()
	must(list, err)
	left := list.Fields["a"]
	check("the hash has what is left", len(list.Fields) == 1 && left.GetValue() == "2")
}
