package message

import (
	"bytes"
	"fmt"
)

// A walk over a JSON text that Validate has passed. Nothing here checks syntax again: an
// index runs out of range only if that promise is broken.

func kindOf(data []byte) string {
	switch data[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}

// EachMember calls f for each member of the object in data, which Validate has passed. path is
// where the object stands, for errors. Two members of one name are an error.
func EachMember(data []byte, path string, f func(name string, value []byte) error) error {
	data = bytes.Trim(data, jsonSpace)
	if data[0] != '{' {
		if path == "" {
			return invalid("body", "want an object, got %s", kindOf(data))
		}
		return invalid(path, "%s: want an object, got %s", path, kindOf(data))
	}
	seen := map[string]bool{}
	for i := next(data, 1); data[i] != '}'; {
		end := skip(data, i)
		name, err := String(data[i:end], join(path, string(data[i:end])))
		if err != nil {
			return err
		}
		if seen[name] {
			return invalid(join(path, name), "%s: stands there twice", join(path, name))
		}
		seen[name] = true
		start := next(data, next(data, end)+1)
		end = skip(data, start)
		if err := f(name, data[start:end]); err != nil {
			return err
		}
		if i = next(data, end); data[i] == ',' {
			i = next(data, i+1)
		}
	}
	return nil
}

// EachElement calls f for each element of the array in data, which Validate has passed.
func EachElement(data []byte, path string, f func(path string, value []byte) error) error {
	if data[0] != '[' {
		return invalid(path, "%s: want an array, got %s", path, kindOf(data))
	}
	n := 0
	for i := next(data, 1); data[i] != ']'; n++ {
		end := skip(data, i)
		if err := f(fmt.Sprintf("%s[%d]", path, n), data[i:end]); err != nil {
			return err
		}
		if i = next(data, end); data[i] == ',' {
			i = next(data, i+1)
		}
	}
	return nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

const jsonSpace = " \t\r\n"

// next is the first position from i on that is not white space.
func next(data []byte, i int) int {
	for bytes.IndexByte([]byte(jsonSpace), data[i]) >= 0 {
		i++
	}
	return i
}

// skip is the end of the value that starts at i.
func skip(data []byte, i int) int {
	switch data[i] {
	case '"':
		return skipString(data, i)
	case '{', '[':
		for depth := 0; ; {
			switch data[i] {
			case '"':
				i = skipString(data, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
	default:
		for i < len(data) && bytes.IndexByte([]byte(",]} \t\r\n"), data[i]) < 0 {
			i++
		}
		return i
	}
}

func skipString(data []byte, i int) int {
	for i++; data[i] != '"'; i++ {
		if data[i] == '\\' {
			i++
		}
	}
	return i + 1
}
