package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// line is one line of the input, without its end.
type line struct {
	number int
	text   []byte
	err    error // the line is too long; text is nil then
}

// lineReader reads lines of bounded length.
type lineReader struct {
	r      *bufio.Reader
	limit  int // in bytes
	number int
}

func newLineReader(r io.Reader, limit int) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, 256<<10), limit: limit}
}

// more says whether another line can be had without waiting for input.
func (l *lineReader) more() bool {
	buffered, _ := l.r.Peek(l.r.Buffered()) // what is buffered can be peeked at
	return bytes.IndexByte(buffered, '\n') >= 0
}

// next returns the next line. Of one that is too long it keeps nothing but the number.
// The error is io.EOF at the end, or the reader's.
func (l *lineReader) next() (line, error) {
	out := line{number: l.number + 1}
	length := 0
	for {
		chunk, err := l.r.ReadSlice('\n')
		length += len(chunk)
		if length <= l.limit+1 {
			out.text = append(out.text, chunk...)
		} else {
			out.text = nil
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil && !errors.Is(err, io.EOF):
			return line{}, err
		case err != nil && length == 0:
			return line{}, io.EOF
		}
		break
	}
	l.number++
	out.text = bytes.TrimSuffix(out.text, []byte("\n"))
	if length > l.limit+1 || len(out.text) > l.limit {
		return line{number: out.number, err: fmt.Errorf("%d bytes, more than a line may have (%d); raise --max-body", length, l.limit)}, nil
	}
	return out, nil
}

// maxBatch is how many lines, and batchBytes about how many bytes, are checked at once.
const (
	maxBatch   = 256
	batchBytes = 1 << 20
)

// batch returns the next line, and with it those that need no waiting. The last batch comes
// together with io.EOF.
func (l *lineReader) batch() ([]line, error) {
	var out []line
	size := 0
	for len(out) == 0 || len(out) < maxBatch && size < batchBytes && l.more() {
		next, err := l.next()
		if err != nil {
			return out, err
		}
		size += len(next.text)
		out = append(out, next)
	}
	return out, nil
}
