package server

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestHTTPHugeRequests(t *testing.T) {
	f := start(t)
	t.Run("a body of 100 MB that says so is refused unread", func(t *testing.T) {
		sent := &counter{reader: io.LimitReader(zeros{}, 100<<20)}
		request, err := http.NewRequest(http.MethodPost, f.url+"/v1/policies/content/check", sent)
		if err != nil {
			t.Fatal(err)
		}
		request.ContentLength = 100 << 20
		request.Header.Set("Expect", "100-continue")
		response, err := (&http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		if r := read(t, response); r.status != 413 || sent.n != 0 {
			t.Errorf("%d after %d bytes: %s", r.status, sent.n, r.text)
		}
	})
	t.Run("a chunked body of 100 MB is refused early", func(t *testing.T) {
		conn := dial(t, f.url)
		_, _ = fmt.Fprintf(conn, "POST /v1/policies/content/check HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n6400000\r\n")
		go func() { _, _ = io.Copy(conn, io.LimitReader(zeros{}, 100<<20)) }()
		if got := readStatus(t, conn); got != "HTTP/1.1 413 Request Entity Too Large" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a header of 1 MB is refused", func(t *testing.T) {
		conn := dial(t, f.url)
		_, _ = fmt.Fprintf(conn, "POST /v1/policies/content/check HTTP/1.1\r\nHost: x\r\nBig: ")
		go func() { _, _ = io.Copy(conn, io.LimitReader(zeros{}, 1<<20)) }()
		if got := readStatus(t, conn); got != "HTTP/1.1 431 Request Header Fields Too Large" {
			t.Errorf("got %q", got)
		}
	})
}

// A body of unknown length is read to one byte beyond the limit and no further.
func TestReadBodyReadsNoMoreThanItMay(t *testing.T) {
	sent := &counter{reader: io.LimitReader(zeros{}, 1<<20)}
	request := &http.Request{Body: io.NopCloser(sent), ContentLength: -1}
	if _, err := readBody(nil, request, 1000, "--max-body"); err == nil {
		t.Fatal("no error")
	}
	if sent.n != 1001 {
		t.Errorf("read %d bytes, want 1001", sent.n)
	}
}

func TestHTTPSlowCallers(t *testing.T) {
	t.Run("headers that never end are cut off", func(t *testing.T) {
		f := start(t, func(o *options) { o.timing.ReadHeader = 100 * time.Millisecond })
		conn := dial(t, f.url)
		_, _ = fmt.Fprintf(conn, "POST /v1/policies/content/check HTTP/1.1\r\nHost: x\r\nSlow: ")
		if _, err := io.ReadAll(conn); err != nil {
			t.Errorf("the connection was not closed: %v", err)
		}
	})
	t.Run("a body that never ends is answered 408", func(t *testing.T) {
		f := start(t, func(o *options) { o.timing.Read = time.Second }) // for the headers, too
		conn := dial(t, f.url)
		_, _ = fmt.Fprintf(conn, "POST /v1/policies/content/check HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
		if got := readStatus(t, conn); got != "HTTP/1.1 408 Request Timeout" {
			t.Errorf("got %q", got)
		}
	})
}

// dial opens a connection that gives up after ten seconds.
func dial(t *testing.T, url string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func readStatus(t *testing.T, conn net.Conn) string {
	t.Helper()
	b := make([]byte, 256)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	line, _, _ := strings.Cut(string(b[:n]), "\r\n")
	return line
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '0'
	}
	return len(b), nil
}

type counter struct {
	reader io.Reader
	n      int
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.reader.Read(b)
	c.n += n
	return n, err
}
