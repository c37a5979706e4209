package control

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/rustyonions/ron-kms/core/api"
)

// headerRequestID is set on every answer of the handler, so its absence tells
// an answer that net/http made by itself.
const headerRequestID = "X-Request-Id"

// conn replaces the plain-text refusals that net/http writes before there is a
// request (a header too large, bad syntax, an unknown transfer encoding) by
// the stable envelope, and so the refusal of plain HTTP on a TLS port.
type conn struct {
	net.Conn
	refuser *handler
}

// Read implements [net.Conn].
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	var record tls.RecordHeaderError
	if errors.As(err, &record) && record.Conn != nil && startsLikeHTTP(record.RecordHeader[:]) {
		io.WriteString(record.Conn, c.refuser.bareRefusal(api.ReasonMalformed, "this port speaks TLS 1.3 only"))
		return n, io.EOF
	}
	return n, err
}

// startsLikeHTTP recognizes a method where TLS has its record header.
func startsLikeHTTP(b []byte) bool {
	for _, method := range []string{"GET /", "POST ", "PUT /", "HEAD ", "OPTIO", "DELET", "PATCH"} {
		if string(b) == method {
			return true
		}
	}
	return false
}

// Write implements [net.Conn].
func (c *conn) Write(b []byte) (int, error) {
	if !isBareRefusal(b) {
		return c.Conn.Write(b)
	}
	reason, message := api.ReasonMalformed, "the request is not HTTP/1.1 as this server speaks it"
	if bytes.HasPrefix(b[len("HTTP/1.1 "):], []byte("431")) {
		reason, message = api.ReasonTooLarge, "the request header is too large"
	}
	if _, err := io.WriteString(c.Conn, c.refuser.bareRefusal(reason, message)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// isBareRefusal recognizes the beginning of an answer 4xx or 5xx without our
// request id. A header of ours is short enough to come in one write, and a
// body of ours has no line breaks like these: JSON, notes and the metrics' text
// cannot hold CR LF, tiles are hashes, and the texts in audit records have no
// control characters.
func isBareRefusal(b []byte) bool {
	const line = "HTTP/1.1 400"
	if len(b) < len(line) || !bytes.HasPrefix(b, []byte("HTTP/1.")) || b[8] != ' ' || b[9] != '4' && b[9] != '5' {
		return false
	}
	header, _, ok := bytes.Cut(b, []byte("\r\n\r\n"))
	return ok && !bytes.Contains(header, []byte("\r\n"+headerRequestID+": "))
}

// bareRefusal is a whole HTTP answer for a connection that ends with it.
func (h *handler) bareRefusal(reason api.Reason, message string) string {
	x := &exchange{id: newRequestID(), pattern: "none", method: "none"}
	e := h.k.Rejected(api.NewError(reason, message))
	a := h.refusal(x, e)
	h.access(x, a)
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", a.status, http.StatusText(a.status))
	header := make(http.Header)
	a.setHeader(header, x)
	header.Set("Connection", "close")
	header.Write(&b) // cannot fail: b is memory
	b.WriteString("\r\n")
	b.Write(a.body)
	return b.String()
}

// CloseWrite lets net/http finish a refusal that the client is still sending
// against, so that it is read and not lost in a reset.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
