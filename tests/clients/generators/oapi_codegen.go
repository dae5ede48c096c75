// Uses the client that oapi-codegen has generated, as an application would.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
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

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := must(roomcast.NewClientWithResponses(os.Getenv("ROOMCAST_URL")))
	name := fmt.Sprintf("oapi-codegen-%d", time.Now().UnixNano())

	stream := must(client.StreamRoom(ctx, name, &roomcast.StreamRoomParams{}))
	defer stream.Body.Close()
	lines := bufio.NewScanner(stream.Body)
	until := func(line string) bool {
		for lines.Scan() {
			if lines.Text() == line {
				return true
			}
		}
		return false
	}
	check("the stream begins with stream.open", until("event: stream.open"))

	tick := "tick"
	published := must(client.PublishEventWithResponse(ctx, name, &roomcast.PublishEventParams{},
		roomcast.Publish{Event: &tick, Data: map[string]int{"n": 1}}))
	check("a publish is 201", published.StatusCode() == 201)
	check("the stream has the event", until("id: "+published.JSON201.Id) && until(`data: {"n":1}`))
	log := must(client.ListEventsWithResponse(ctx, name, &roomcast.ListEventsParams{})).JSON200
	check("the log holds what was published", len(log.Events) == 1 && log.Events[0].Id == published.JSON201.Id)
	check("the log has no gap", log.Gap == nil)

	absent := must(client.GetFieldWithResponse(ctx, name, "colour", &roomcast.GetFieldParams{}))
	check("a field that is absent is 404", absent.StatusCode() == 404)
	check("the 404 is a problem document", absent.ApplicationproblemJSON404.Code == "field_not_found")

	set := func(value string, etag *string) *roomcast.SetFieldResponse {
		params := roomcast.SetFieldParams{IfMatch: etag}
		return must(client.SetFieldWithResponse(ctx, name, "colour", &params, roomcast.SetField{Value: &value}))
	}
	created := set("green", nil)
	check("a new field is 201", created.StatusCode() == 201)
	etag := created.HTTPResponse.Header.Get("ETag")
	check("a write whose condition holds is done", set("red", &etag).StatusCode() == 200)
	refused := set("blue", &etag)
	check("a write whose condition does not hold is 412", refused.StatusCode() == 412)
	check("the 412 has the present value", *refused.ApplicationproblemJSON412.Present.Value == "red")

	one, two := "1", "2"
	patch := func(remove *[]string, body map[string]*string) *roomcast.PatchAnswer {
		params := roomcast.PatchFieldsParams{Remove: remove}
		return must(client.PatchFieldsWithResponse(ctx, name, &params, body)).JSON200
	}
	patch(nil, map[string]*string{"a": &one, "b": &one})
	patched := patch(&[]string{"b"}, map[string]*string{"a": &two, "colour": nil})
	check("a patch sets and removes", patched.Replaced == 1 && patched.Removed == 2)
	list := must(client.ListFieldsWithResponse(ctx, name, &roomcast.ListFieldsParams{})).JSON200
	text := string(must(json.Marshal(list.Fields)))
	check("the hash has what is left", strings.EqualFold(text, `{"a":{"value":"2"}}`))
}
