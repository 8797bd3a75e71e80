package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
)

// web is one HTTP/1.1 request for each message, over a connection of each caller's own. The
// client is a lean one, as a load generator's is: what a consumer's HTTP library costs is not
// dedupd's, and would hide it.
func web(addr, policy string, callers int) load {
	head := "POST /v1/policies/" + policy + "/check HTTP/1.1\r\nHost: " + addr + "\r\nDedup-Consumer: " + consumer +
		"\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(payload))
	return load{callers: callers, caller: func(int) (func(context.Context) (int, error), func(), error) {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, nil, err
		}
		in := bufio.NewReader(conn)
		request := make([]byte, 0, 1024)
		turn := func(context.Context) (int, error) {
			request = append(request[:0], head...)
			request = append(append(request, "\r\nDedup-Attempt: "...), newID()...)
			request = append(append(request, "\r\nMessage-Id: "...), newID()...)
			request = append(append(request, "\r\n\r\n"...), payload...)
			if _, err := conn.Write(request); err != nil {
				return 0, err
			}
			body, err := readResponse(in)
			if err == nil && !bytes.Contains(body, []byte(`"decision":"FRESH"`)) {
				err = fmt.Errorf("answered %s", body)
			}
			return 1, err
		}
		return turn, func() { _ = conn.Close() }, nil
	}}
}

// readResponse reads a response that says its length.
func readResponse(in *bufio.Reader) ([]byte, error) {
	length := 0
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		if name, value, ok := bytes.Cut(line, []byte(": ")); ok && textproto.CanonicalMIMEHeaderKey(string(name)) == "Content-Length" {
			if length, err = strconv.Atoi(string(value)); err != nil {
				return nil, err
			}
		}
	}
	body := make([]byte, length)
	_, err := io.ReadFull(in, body)
	return body, err
}
