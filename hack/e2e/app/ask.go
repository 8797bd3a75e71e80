package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
)

// ask asks by plain HTTP to check a message and to forget it, and prints what it is answered. With a
// token, if the pod was given one.
func ask(ctx context.Context, id string) error {
	policy := os.Getenv("DEDUPD_URL") + "/v1/policies/" + os.Getenv("DEDUPD_POLICY")
	check, err := statusOf(ctx, http.MethodPost, policy+"/check", id)
	if err != nil {
		return err
	}
	forget, err := statusOf(ctx, http.MethodDelete, policy+"/keys/"+id, id)
	fmt.Println("check", check, "forget", forget)
	return err
}

func statusOf(ctx context.Context, method, url, id string) (int, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(""))
	if err != nil {
		return 0, err
	}
	r.Header.Set("message-id", id)
	if file := os.Getenv("DEDUPD_TOKEN_FILE"); file != "" {
		token, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err
	}
	return answer.StatusCode, answer.Body.Close()
}
