// Package record is what a store keeps under a key: its fields and its binary form.
package record

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// State is what happened to a message so far.
type State uint8

// The states. Stored records hold these numbers; they never change meaning.
const (
	Marked    State = 1 // mode Mark: seen, let through once
	Claimed   State = 2 // mode Claim: a holder works, or its lease has run out
	Completed State = 3 // mode Claim: a holder has processed it
	Released  State = 4 // mode Claim: a holder gave it back; kept so that the fence goes on rising
)

// String returns the state as the interfaces name it.
func (s State) String() string {
	switch s {
	case Marked:
		return "MARKED"
	case Claimed:
		return "CLAIMED"
	case Completed:
		return "COMPLETED"
	case Released:
		return "RELEASED"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Owner identifies one logical attempt: 128 bits of SHA-256 over the attempt token.
// "The record in the store is my own" means that the owners are equal.
type Owner [16]byte

// OwnerOf returns the owner of an attempt token.
func OwnerOf(attempt string) Owner {
	sum := sha256.Sum256([]byte(attempt))
	return Owner(sum[:16])
}

// Digest is 128 bits of SHA-256 over a message's content, for verifyContent. The zero
// Digest means that the content is not verified.
type Digest [16]byte

// DigestOf returns the digest of a content. It is never zero.
func DigestOf(content []byte) Digest {
	sum := sha256.Sum256(content)
	d := Digest(sum[:16])
	if d == (Digest{}) {
		d[0] = 1
	}
	return d
}

// Record is what is remembered of a message. It holds durations and not deadlines: how long
// ago it was written follows from Window and what is left of the key's expiry, so that only
// the store's clock ever decides.
type Record struct {
	State State
	Owner Owner

	// FirstSeen is when the first attempt was let through: the store's clock as far as the
	// writer knew it, to the millisecond. For people and metrics only; nothing is decided by it.
	FirstSeen time.Time

	// Fence rises from holder to holder while the record lives. Zero in state Marked.
	Fence uint64

	// Lease is how long the holder may work, in whole milliseconds. Zero unless Claimed.
	Lease time.Duration

	// Window is the expiry with which the record was written, in whole milliseconds. Lease
	// runs out when less than Window-Lease is left of it.
	Window time.Duration

	// Digest is the content's, zero where the policy does not verify it.
	Digest Digest
}

// The binary form, which Redis scripts read as well:
//
//	offset size  field
//	0      1     version (high nibble) and state (low nibble)
//	1      16    owner
//	17     6     first seen, milliseconds since 1970, big endian
//	23     16    digest, absent where zero
//	and in every state but Marked, counted from the end of the above:
//	       8     fence, big endian
//	       4     lease, milliseconds, big endian
//	       6     window, milliseconds, big endian
//
// The four lengths differ (23, 39, 41, 57), so that no flag is needed for the digest.
const (
	version = 1

	baseLen  = 1 + 16 + 6
	claimLen = 8 + 4 + 6
)

// MaxLease is the longest lease that the binary form can hold.
const MaxLease = (1<<32 - 1) * time.Millisecond

// MaxWindow is the longest window that the binary form can hold.
const MaxWindow = (1<<43 - 1) * time.Millisecond

// ErrCorrupt is wrapped by every error of Decode: the value under the key was not written
// by this software, or by a newer version of it.
var ErrCorrupt = errors.New("not a dedupd record")

// Append appends the binary form of r to b.
func (r Record) Append(b []byte) []byte {
	b = append(b, version<<4|byte(r.State))
	b = append(b, r.Owner[:]...)
	b = appendUint48(b, uint64(max(r.FirstSeen.UnixMilli(), 0)))
	if r.Digest != (Digest{}) {
		b = append(b, r.Digest[:]...)
	}
	if r.State != Marked {
		b = binary.BigEndian.AppendUint64(b, r.Fence)
		b = binary.BigEndian.AppendUint32(b, uint32(r.Lease.Milliseconds()))
		b = appendUint48(b, uint64(r.Window.Milliseconds()))
	}
	return b
}

// Decode reads a binary form. The window of a Marked record is zero: it is not stored.
func Decode(b []byte) (Record, error) {
	var r Record
	if len(b) < baseLen {
		return r, fmt.Errorf("%w: %d bytes, want at least %d", ErrCorrupt, len(b), baseLen)
	}
	if b[0]>>4 != version {
		return r, fmt.Errorf("%w: version %d, want %d", ErrCorrupt, b[0]>>4, version)
	}
	r.State = State(b[0] & 0x0f)
	if r.State < Marked || r.State > Released {
		return r, fmt.Errorf("%w: state %d", ErrCorrupt, r.State)
	}
	r.Owner = Owner(b[1:17])
	r.FirstSeen = time.UnixMilli(int64(uint48(b[17:]))).UTC()
	rest := b[baseLen:]
	want := 0
	if r.State != Marked {
		want = claimLen
	}
	switch len(rest) {
	case want:
	case want + len(r.Digest):
		r.Digest = Digest(rest)
		rest = rest[len(r.Digest):]
	default:
		return Record{}, fmt.Errorf("%w: %d bytes in state %s", ErrCorrupt, len(b), r.State)
	}
	if want > 0 {
		r.Fence = binary.BigEndian.Uint64(rest)
		r.Lease = time.Duration(binary.BigEndian.Uint32(rest[8:])) * time.Millisecond
		window := uint48(rest[12:])
		if window > uint64(MaxWindow/time.Millisecond) {
			return Record{}, fmt.Errorf("%w: a window of %d ms", ErrCorrupt, window)
		}
		r.Window = time.Duration(window) * time.Millisecond
	}
	return r, nil
}

func appendUint48(b []byte, v uint64) []byte {
	return append(b, byte(v>>40), byte(v>>32), byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

func uint48(b []byte) uint64 {
	return uint64(b[0])<<40 | uint64(b[1])<<32 | uint64(b[2])<<24 | uint64(b[3])<<16 | uint64(b[4])<<8 | uint64(b[5])
}

// Token is what the holder of a claim shows to complete, release or renew it.
type Token struct {
	Owner Owner
	Fence uint64
}

// ErrToken is wrapped by every error of ParseToken.
var ErrToken = errors.New("not a claim token")

// String returns the token as it travels: 32 characters of URL-safe base64.
func (t Token) String() string {
	b := make([]byte, 0, 24)
	b = append(b, t.Owner[:]...)
	b = binary.BigEndian.AppendUint64(b, t.Fence)
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads what String wrote.
func ParseToken(s string) (Token, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != 24 || len(s) != 32 { // base64 skips line breaks
		return Token{}, fmt.Errorf("%w: want the 32 characters that a FRESH answer carried", ErrToken)
	}
	return Token{Owner: Owner(b[:16]), Fence: binary.BigEndian.Uint64(b[16:])}, nil
}
