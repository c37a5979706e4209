package control

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"net"
	"net/http"

	"github.com/rustyonions/ron-kms/core/capability"
)

// presenter is what the connection proves of who sent the request. It only ever
// narrows what a bearer token is good for.
func presenter(r *http.Request) (p capability.Presenter) {
	switch c := r.Context().Value(connection{}).(type) {
	case *tls.Conn: // the handshake is over: a request came through
		if certs := c.ConnectionState().PeerCertificates; len(certs) > 0 {
			// It proves that the client has this key. Who signed the certificate
			// does not matter, because the token names the key.
			p.TLSKeyHash = sha256.Sum256(certs[0].RawSubjectPublicKeyInfo)
		}
	case uint32:
		p.PeerUID = &c
	}
	return p
}

// connection is the key, in the context of a request, of what its connection can
// prove: a *tls.Conn, or the user at the other end of a Unix socket.
type connection struct{}

// withConnection is an [http.Server.ConnContext].
func withConnection(ctx context.Context, c net.Conn) context.Context {
	if w, ok := c.(*conn); ok {
		c = w.Conn
	}
	switch c := c.(type) {
	case *tls.Conn:
		return context.WithValue(ctx, connection{}, c)
	case *net.UnixConn:
		if uid, ok := userOf(c); ok {
			return context.WithValue(ctx, connection{}, uid)
		}
	}
	return ctx
}
