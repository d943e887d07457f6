package provider

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// What follows is as much of gRPC over HTTP/2 as a call with one message in each
// direction takes. See docs/adr/0011-grpc-by-net-http.md for why.

const (
	servicePath  = "/keyprovider.KeyProviderService/"
	methodWrap   = "WrapKey"
	methodUnwrap = "UnWrapKey"

	contentType = "application/grpc"
	prefixSize  = 5 // of a message: a flag for compression, and its length

	headerStatus  = "Grpc-Status"
	headerMessage = "Grpc-Message"
	headerTimeout = "Grpc-Timeout"
)

// The statuses that mean something here.
const (
	statusOK               = 0
	statusCancelled        = 1
	statusUnknown          = 2
	statusInvalidArgument  = 3
	statusDeadlineExceeded = 4
	statusExhausted        = 8
	statusUnimplemented    = 12
	statusUnavailable      = 14
)

// statusNames are the names of gRPC's statuses, by number.
func statusName(code int) string {
	names := [...]string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
		"ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
		"UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}
	if code < 0 || code >= len(names) {
		return strconv.Itoa(code)
	}
	return names[code]
}

// frame is a message that has one field of bytes, number 1, as both messages of the
// protocol do, with the prefix that gRPC puts before it.
func frame(field []byte) []byte {
	message := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), field)
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}

var (
	errFrame      = errors.New("it is not one gRPC message")
	errCompressed = errors.New("it is compressed")
)

// unframe returns the field of a message. Fields of other numbers are passed over.
func unframe(data []byte) ([]byte, error) {
	if len(data) < prefixSize || int64(binary.BigEndian.Uint32(data[1:])) != int64(len(data)-prefixSize) {
		return nil, errFrame
	}
	if data[0] != 0 {
		return nil, errCompressed
	}
	var field []byte
	for data = data[prefixSize:]; len(data) > 0; {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return nil, errFrame
		}
		data = data[n:]
		if number == 1 && kind == protowire.BytesType {
			if field, n = protowire.ConsumeBytes(data); n < 0 {
				return nil, errFrame
			}
		} else if n = protowire.ConsumeFieldValue(number, kind, data); n < 0 {
			return nil, errFrame
		}
		data = data[n:]
	}
	return field, nil
}

// reply is what a service has answered.
type reply struct {
	response *http.Response // with its trailer; the body has been read
	body     []byte
}

// call asks a question by a connection. An error is one of the connection.
func (s *service) call(ctx context.Context, conn http.RoundTripper, q question, request []byte) (reply, error) {
	// Ends the stream where the body was not read to its end.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	method := methodUnwrap
	if q.op == opWrap {
		method = methodWrap
	}
	scheme, authority := "http", s.target.authority
	if s.tls != nil {
		scheme = "https"
		if s.tls.ServerName != "" {
			authority = s.tls.ServerName
		}
	}
	message := frame(request)
	r := (&http.Request{
		Method:        http.MethodPost,
		URL:           &url.URL{Scheme: scheme, Host: authority, Path: servicePath + method},
		Header:        http.Header{"Content-Type": {contentType}, "Te": {"trailers"}, "User-Agent": {"imgcrypt"}},
		Body:          io.NopCloser(bytes.NewReader(message)),
		ContentLength: int64(len(message)),
	}).WithContext(ctx)
	if deadline, ok := ctx.Deadline(); ok {
		// A little more than there is: who gives up should be the one who can say why.
		r.Header.Set(headerTimeout, formatTimeout(time.Until(deadline)+time.Second))
	}
	response, err := conn.RoundTrip(r)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, prefixSize+maxAnswer+1))
	if err != nil {
		return reply{}, err
	}
	return reply{response: response, body: body}, nil
}

// result returns what is in the answer to a question.
func (r reply) result(q question) ([]byte, error) {
	status := r.response.Trailer
	if status.Get(headerStatus) == "" {
		status = r.response.Header // where there is no message
	}
	code, err := strconv.Atoi(status.Get(headerStatus))
	switch {
	case len(r.body) > prefixSize+maxAnswer:
		return nil, errTooLong()
	case err != nil && r.response.StatusCode != http.StatusOK:
		return nil, unreachable(fmt.Errorf("it answers with HTTP status %d, so it is no gRPC service", r.response.StatusCode))
	case err != nil:
		return nil, unreachable(errors.New("its answer has no gRPC status"))
	case code != statusOK:
		return nil, statusError(code, gist(unescape(status.Get(headerMessage)), q.hidden()))
	}
	message, err := unframe(r.body)
	if err != nil {
		return nil, unreachable(fmt.Errorf("%w: %w", errNoJSON, err))
	}
	data, err := q.parse(message)
	if err != nil {
		return nil, unreachable(err)
	}
	return data, nil
}

// statusError tells a service that refuses from one that cannot answer.
func statusError(code int, message string) error {
	if code == statusUnknown && message != "" {
		// What a service's own error becomes where it does not choose.
		return fmt.Errorf("refused: %s", message)
	}
	err := note(fmt.Errorf("gRPC status %s", statusName(code)), message)
	switch code {
	case statusCancelled, statusDeadlineExceeded, statusExhausted, statusUnimplemented, statusUnavailable:
		return unreachable(err)
	}
	return fmt.Errorf("refused: %w", err)
}

// formatTimeout writes a duration as gRPC does: at most eight digits and a unit.
func formatTimeout(d time.Duration) string {
	const most = 99_999_999
	switch {
	case d <= 0:
		return "0n"
	case d.Milliseconds() <= most:
		return strconv.FormatInt(max(1, d.Milliseconds()), 10) + "m"
	}
	return strconv.FormatInt(min(most, int64(d/time.Second)), 10) + "S"
}

// parseTimeout reads what formatTimeout and its like write; ok says whether there is
// one that can be represented.
func parseTimeout(s string) (d time.Duration, ok bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	units := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second,
		'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}
	unit := units[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if unit == 0 || err != nil || n > uint64((1<<63-1)/unit) {
		return 0, false
	}
	return time.Duration(n) * unit, true
}

// escape writes a message as gRPC does: percent-encoded, but for printable ASCII.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// unescape reads it. What is not encoded right stays as it is.
func unescape(s string) string {
	if text, err := url.PathUnescape(s); err == nil {
		return text
	}
	return s
}
