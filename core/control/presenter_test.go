package control

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rustyonions/ron-kms/core/capability"
	"github.com/rustyonions/ron-kms/core/config"
)

// narrowed is a token that may do everything as tenant acme, with further caveats.
func (g *rig) narrowed(caveats ...string) string {
	g.t.Helper()
	var more []capability.Caveat
	for _, text := range caveats {
		c, err := capability.ParseCaveat(text)
		if err != nil {
			g.t.Fatal(err)
		}
		more = append(more, c)
	}
	token, err := capability.Attenuate(g.admin(), more...)
	if err != nil {
		g.t.Fatal(err)
	}
	return token
}

// list asks a server for acme's keys, and returns the status.
func list(t *testing.T, c *http.Client, url, token string, header http.Header) int {
	t.Helper()
	r, err := http.NewRequest("GET", url+"/v1/kms/keys?tenant=acme", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		r.Header[name] = values
	}
	r.Header.Set("Authorization", "Bearer "+token)
	return fetch(t, c, r).status
}

// A token that is bound to the user of a Unix socket is good for that user there, and nowhere else. Forwarded identities count
// for nothing..
func TestPeerUID(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kms.sock")
	g := newRig(t, bind("unix://"+path))
	g.started(defaultLimits)
	c := client(t, &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}})
	own, other := fmt.Sprintf("peer-uid=%d", os.Getuid()), fmt.Sprintf("peer-uid=%d", os.Getuid()+1)
	if got := list(t, c, "http://kms", g.narrowed(own), nil); got != 200 {
		t.Errorf("own user: %d", got)
	}
	for name, token := range map[string]string{"other user": g.narrowed(other), "both": g.narrowed(own, other)} {
		if got := list(t, c, "http://kms", token, nil); got != 401 {
			t.Errorf("%s: %d", name, got)
		}
	}
	g = newRig(t, bind("127.0.0.1:0"))
	s := g.started(defaultLimits)
	c = client(t, new(http.Transport))
	for _, header := range []http.Header{nil, {"X-Forwarded-User": {fmt.Sprint(os.Getuid())}, "X-Peer-Uid": {fmt.Sprint(os.Getuid())}}} {
		if got := list(t, c, s.Addr(), g.narrowed(own), header); got != 401 {
			t.Errorf("over TCP with %v: %d", header, got)
		}
	}
}

// A token that is bound to a client's key needs a connection that proves it, and one for an audience a server of that name..
func TestClientKey(t *testing.T) {
	t.Parallel()
	certFile, keyFile, roots := certificate(t)
	g := newRig(t, bind("127.0.0.1:0"), func(c *config.Config) { c.TLSCert, c.TLSKey, c.Audience = certFile, keyFile, "kms-1" })
	s := g.started(defaultLimits)
	own, hash := clientCertificate(t)
	another, _ := clientCertificate(t)
	bound := g.narrowed("client-key=" + hash)
	for _, tt := range []struct {
		name  string
		certs []tls.Certificate
		token string
		want  int
	}{
		{"with the key", []tls.Certificate{own}, bound, 200},
		{"without it", nil, bound, 401},
		{"with another", []tls.Certificate{another}, bound, 401},
		{"not bound", []tls.Certificate{another}, g.admin(), 200},
		{"its audience", nil, g.narrowed("aud=kms-1"), 200},
		{"another audience", nil, g.narrowed("aud=kms-2"), 401},
	} {
		c := client(t, &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: tt.certs}})
		if got := list(t, c, s.Addr(), tt.token, nil); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

// clientCertificate is one that nobody has signed, and the hash of its key.
func clientCertificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	spki := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, hex.EncodeToString(spki[:])
}
