package control

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// socketMode lets the server's own user connect and nobody else.
const socketMode = 0o600

// errSocketLive says that somebody answers on the socket already.
var errSocketLive = errors.New("another server listens on this socket")

// loadTLS reads the server's certificate: TLS 1.3 only, so that every key
// exchange can be hybrid post-quantum (X25519MLKEM768 is Go's default). Nil
// without a certificate.
func loadTLS(certFile, keyFile string) (*tls.Config, error) {
	if certFile == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS13,
		ClientAuth:   tls.RequestClientCert, // for tokens that are bound to a client's key; nothing else asks for one
		NextProtos:   []string{"http/1.1"},
	}, nil
}

// listener accepts connections, with TLS if it has a configuration. Its
// connections answer in the stable envelope even where net/http answers by
// itself (wire.go).
type listener struct {
	net.Listener
	tls     *tls.Config
	refuser *handler // makes those answers
	socket  string   // path of the Unix socket, empty for TCP
	remove  func()   // removes the socket, once
}

// listen binds host:port, or unix:///path. It checks the address it got, not
// only the name it was given: without TLS it must be loopback.
func listen(bind string, tlsConfig *tls.Config, h *handler) (*listener, error) {
	if bind == "" {
		return nil, errors.New("no address: set KMS_BIND")
	}
	if path, ok := strings.CutPrefix(bind, "unix://"); ok {
		return listenUnix(path, h)
	}
	l, err := net.Listen("tcp", bind)
	if err != nil {
		return nil, err
	}
	if ip := l.Addr().(*net.TCPAddr).IP; tlsConfig == nil && !ip.IsLoopback() {
		return nil, errors.Join(fmt.Errorf("%s is not loopback, and there is no TLS certificate", bind), l.Close())
	}
	return &listener{Listener: l, tls: tlsConfig, refuser: h}, nil
}

// listenUnix binds a socket that never exists with a wider mode than 0600: it
// is made in a folder of its own and moved to its place, which also replaces
// the socket of a dead server in one step. A socket somebody answers on, and
// anything that is no socket, is refused.
func listenUnix(path string, h *handler) (*listener, error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("a socket needs an absolute path: unix:///path")
	}
	if err := replaceable(path); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	temp := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by then the socket has another name
	fail := func(err error) (*listener, error) { return nil, errors.Join(err, l.Close()) }
	if err := os.Chmod(temp, socketMode); err != nil {
		return fail(err)
	}
	own, err := os.Lstat(temp)
	if err != nil {
		return fail(err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fail(err)
	}
	remove := sync.OnceFunc(func() {
		// Only if it is still ours: a successor may have replaced it.
		if now, err := os.Lstat(path); err == nil && os.SameFile(own, now) {
			os.Remove(path)
		}
	})
	return &listener{Listener: l, refuser: h, socket: path, remove: remove}, nil
}

// replaceable returns nil if there is nothing at path, or the socket of a
// server that is gone.
func replaceable(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		return errors.Join(errSocketLive, c.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return nil
}

// url is the listener's address as a client writes it.
func (l *listener) url() string {
	switch {
	case l.socket != "":
		return "unix://" + l.socket
	case l.tls != nil:
		return "https://" + l.Addr().String()
	}
	return "http://" + l.Addr().String()
}

// Accept implements [net.Listener]. The TLS handshake happens at the first
// read, under the time limit of the request's header.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if l.tls != nil {
		c = tls.Server(c, l.tls)
	}
	return &conn{Conn: c, refuser: l.refuser}, nil
}

// Close implements [net.Listener].
func (l *listener) Close() error {
	err := l.Listener.Close()
	if l.remove != nil {
		l.remove()
	}
	return err
}
