package witness

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/rustyonions/ron-kms/audit/fsys"
)

const (
	keyFile       = "key"
	configFile    = "witness.json"
	configVersion = 1
	configLimit   = 4 << 20 // bytes
	keyLimit      = 4096    // bytes
)

// config is the file witness.json:
//
//	{
//	  "version": 1,
//	  "vkey": "witness.example+5c1a8b9e+BCdP…",
//	  "logs": [
//	    {
//	      "origin": "kms.example/audit/1f0c",
//	      "vkeys": ["kms.example/audit/1f0c+0c33f8d4+AW0x…"]
//	    }
//	  ]
//	}
type config struct {
	Version int         `json:"version"`
	VKey    string      `json:"vkey"` // of the cosignatures, type 4
	Logs    []logConfig `json:"logs"`
}

// A logConfig says which checkpoints are a log's: those that one of its Ed25519 keys signed and, if it has ML-DSA-44
// keys, one of those too.
type logConfig struct {
	Origin string   `json:"origin"` // first line of its checkpoints, at most 255 bytes
	VKeys  []string `json:"vkeys"`  // of type 1 (Ed25519; at least one) and 6 (ML-DSA-44)
}

// Init makes a witness in a directory that is empty or does not exist, and returns the verifier key of its
// cosignatures. The name is a host name or a URL without a scheme, such as witness.example/w1; it has no spaces and no +.
func Init(dir, name string) (vkey string, err error) {
	defer wrap(&err)
	if len(name) > maxOrigin {
		return "", errors.New("the name is too long")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	d, err := fsys.Open(dir)
	if err != nil {
		return "", err
	}
	defer d.Close()
	if names, err := d.List(); err != nil || len(names) > 0 {
		return "", errors.Join(err, fmt.Errorf("%s is not empty", dir))
	}
	skey, vkey, err := generateKey(name)
	if err != nil {
		return "", err
	}
	if err := fsys.ReplaceFile(d, keyFile, []byte(skey+"\n")); err != nil {
		return "", err
	}
	// Last, because its presence says that the witness is complete.
	return vkey, writeConfig(d, &config{Version: configVersion, VKey: vkey, Logs: []logConfig{}})
}

// generateKey makes an Ed25519 key of the type of cosignatures (4). It is not left as the type of plain notes (1), so
// that no program takes it for a key that signs checkpoints.
func generateKey(name string) (skey, vkey string, err error) {
	plain, plainV, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return "", "", err
	}
	if vkey, err = fnote.VKeyToCosignatureV1(plainV); err != nil {
		return "", "", err
	}
	v, err := fnote.NewVerifierForCosignatureV1(vkey)
	if err != nil {
		return "", "", err
	}
	fields := strings.SplitN(plain, "+", 5) // PRIVATE+KEY+name+hash+base64; the last may have a + in it
	key, err := base64.StdEncoding.DecodeString(fields[len(fields)-1])
	if err != nil {
		return "", "", err
	}
	key[0] = typeCosignature
	return "PRIVATE+KEY+" + formatKey(name, v.KeyHash(), key), vkey, nil
}

// AddLog makes a witness know a log by its origin and verifier keys, or gives a log that it knows further keys. An empty
// origin is the name of the keys. What the witness has seen of the log stays. No server may run on the directory.
func AddLog(dir, origin string, vkeys []string) (err error) {
	defer wrap(&err)
	d, unlock, err := openLocked(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	defer unlock.Close()
	return addLog(d, origin, vkeys)
}

func addLog(d fsys.Dir, origin string, vkeys []string) error {
	c, err := readConfig(d)
	if err != nil {
		return err
	}
	if origin == "" && len(vkeys) > 0 {
		origin, _, _ = strings.Cut(vkeys[0], "+")
	}
	i := slices.IndexFunc(c.Logs, func(l logConfig) bool { return l.Origin == origin })
	if i < 0 {
		i = len(c.Logs)
		c.Logs = append(c.Logs, logConfig{Origin: origin})
	}
	for _, vkey := range vkeys {
		if !slices.Contains(c.Logs[i].VKeys, vkey) {
			c.Logs[i].VKeys = append(c.Logs[i].VKeys, vkey)
		}
	}
	l, err := newLog(c.Logs[i])
	if err != nil {
		return err
	}
	k, err := readKey(d, c.VKey)
	if err != nil {
		return err
	}
	// A state that is there is that of a log known before, and is never made anew.
	if err := l.load(d, k.verifier); errors.Is(err, fs.ErrNotExist) {
		err = l.create(d, k)
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return writeConfig(d, c)
}

func readConfig(d fsys.Dir) (*config, error) {
	b, err := fsys.ReadFile(d, configFile, configLimit)
	if err != nil {
		return nil, err
	}
	var c config
	if err := json.Unmarshal(b, &c, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%s: %w", configFile, err)
	}
	if c.Version != configVersion {
		return nil, fmt.Errorf("%s: unknown version %d", configFile, c.Version)
	}
	return &c, nil
}

func writeConfig(d fsys.Dir, c *config) error {
	b, err := json.Marshal(c, jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	return fsys.ReplaceFile(d, configFile, append(b, '\n'))
}

// A cosigner is the witness's key.
type cosigner struct {
	signer   note.Signer
	verifier note.Verifier
}

// readKey reads the private key and compares it with the public one.
func readKey(d fsys.Dir, vkey string) (*cosigner, error) {
	v, _, err := parseVerifier(vkey, typeCosignature)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", configFile, err)
	}
	b, err := fsys.ReadFile(d, keyFile, keyLimit)
	if err != nil {
		return nil, err
	}
	s, err := fnote.NewSignerForCosignatureV1(strings.TrimSuffix(string(b), "\n"))
	if err != nil {
		return nil, fmt.Errorf("%s: not a private key of a witness", keyFile) // the error must not quote it
	}
	if s.Name() != v.Name() || s.KeyHash() != v.KeyHash() {
		return nil, fmt.Errorf("%s is not the key that %s names", keyFile, configFile)
	}
	return &cosigner{s, v}, nil
}

// openLocked opens a witness's directory for the one process that may change it: two that sign from the same state
// could each cosign another tree.
func openLocked(dir string) (fsys.Dir, io.Closer, error) {
	st, err := os.Stat(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, nil, fmt.Errorf("%s may be read by others: chmod 600 it", filepath.Join(dir, keyFile))
	}
	d, err := fsys.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	unlock, err := d.Lock(keyFile, true)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", dir, err), d.Close())
	}
	return d, unlock, nil
}

func wrap(err *error) {
	if *err != nil {
		*err = fmt.Errorf("witness: %w", *err)
	}
}

// NewVerifier returns the verifier of a witness's cosignatures, from its verifier key of type 4 (Ed25519) or 6 (ML-DSA-44).
func NewVerifier(vkey string) (v note.Verifier, err error) {
	defer wrap(&err)
	v, _, err = parseVerifier(vkey, typeCosignature, typeMLDSA44)
	return v, err
}
