package main

import "sync/atomic"

// ids are the numbers of messages: each is used once in the life of this process.
var ids atomic.Uint64

const idLen = 36

// newID returns the id of a message that there has not been before, in the form of a UUID.
func newID() string {
	b := [idLen]byte([]byte("00000000-0000-4000-8000-000000000000"))
	const digits = "0123456789abcdef"
	n := ids.Add(1)
	// The end of the text, and its beginning, so that no two ids of one run share more than
	// those of a random generator would.
	for i := idLen - 1; i > 23; i-- {
		b[i] = digits[n&0xf]
		n >>= 4
	}
	copy(b[:8], b[idLen-8:])
	return string(b[:])
}

// payload is a message's body: some 200 bytes, as of an order.
const payload = `{"user_id":123456,"event_type":"order.created","sent_at":"2024-05-01T10:00:00Z","total":19.99,` +
	`"items":[{"sku":"AB-1","quantity":2},{"sku":"CD-2","quantity":1}],"address":"12 Example Street, Exampletown"}`
