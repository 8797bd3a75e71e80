package server

import (
	"google.golang.org/protobuf/proto"

	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// streamRequest is a request on a stream, and what it costs.
type streamRequest struct {
	pb.CheckStreamRequest

	messages int   // what it counts as in the queue
	bytes    int64 // what it is taken to hold in memory
	refused  error // why it is not decoded, but for its id
}

// The fields of a CheckStreamRequest that are looked at before it is decoded.
const (
	fieldID    = 1<<3 | varint
	fieldBatch = 4<<3 | length
)

// read reads a request. A batch of too many messages is refused before it is decoded: a message may be two
// bytes long as it travels, and in memory it is not.
func (r *streamRequest) read(data []byte, limits Limits) error {
	id, messages, err := scanStreamRequest(data)
	if err != nil {
		return err
	}
	if err := limits.fits(messages, "batch.messages"); err != nil {
		r.Id = id
		r.refuse(err)
		return nil
	}
	if err := proto.Unmarshal(data, &r.CheckStreamRequest); err != nil {
		return err
	}
	r.weigh()
	return nil
}

// scanStreamRequest finds a request's id, and how many messages are in its batch.
func scanStreamRequest(data []byte) (id uint64, messages int, err error) {
	w := wireBatch{data: data}
	for from := 0; from < len(data); {
		f, next, err := w.next(from, len(data))
		if err != nil {
			return 0, 0, err
		}
		from = next
		switch f.tag {
		case fieldID:
			id = f.value
		case fieldBatch:
			for at := f.at.from; at < f.at.to; {
				element, after, err := w.next(at, f.at.to)
				if err != nil {
					return 0, 0, err
				}
				at = after
				if element.tag == fieldMessages {
					messages++
				}
			}
		}
	}
	return id, messages, nil
}

// refuse makes it a request that is answered with an error, and holds nothing.
func (r *streamRequest) refuse(err error) {
	r.Request, r.messages, r.bytes, r.refused = nil, 1, 0, err
}

// weigh sets how many messages the request has, and about what it holds in memory: its
// texts, and 256 bytes for each message beside them.
func (r *streamRequest) weigh() {
	const each = 256
	switch in := r.GetRequest().(type) {
	case *pb.CheckStreamRequest_Check:
		n := len(in.Check.GetPolicy()) + len(in.Check.GetConsumer()) + len(in.Check.GetAttempt())
		r.messages, r.bytes = 1, int64(n)+sizeOfMessage(in.Check.GetMessage())
	case *pb.CheckStreamRequest_Batch:
		r.bytes = each + int64(len(in.Batch.GetPolicy())+len(in.Batch.GetConsumer()))
		for _, m := range in.Batch.GetMessages() {
			r.bytes += int64(len(m.GetAttempt())) + sizeOfMessage(m.GetMessage())
		}
		r.messages = max(len(in.Batch.GetMessages()), 1)
	case *pb.CheckStreamRequest_Settle:
		n := len(in.Settle.GetPolicy()) + len(in.Settle.GetSettle().GetKey()) + len(in.Settle.GetSettle().GetToken())
		r.messages, r.bytes = 1, each+int64(n)
	default:
		r.messages, r.bytes = 1, each
	}
}

func sizeOfMessage(m *pb.Message) int64 {
	n := 256 + len(m.GetBody())
	for name, value := range m.GetHeaders() {
		n += 64 + len(name) + len(value)
	}
	return int64(n)
}

// bytesOf is what requests hold together.
func bytesOf(requests []*streamRequest) int64 {
	var n int64
	for _, r := range requests {
		n += r.bytes
	}
	return n
}
