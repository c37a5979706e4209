package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/secret"
)

// maxEnvelopeText bounds an envelope in a file, in bytes: base64 and white
// space around it.
const maxEnvelopeText = 2 * alg.MaxEnvelope

func wrapCommand() *cobra.Command {
	var f clientFlags
	var req api.WrapRequest
	var in, keyOut, offline, tenant string
	cmd := &cobra.Command{
		Use:   "wrap --kid KID [--size N | --in FILE]",
		Short: "Seal a data key, a fresh one or that of a file, and print the envelope",
		Long: `Seals a data key to a key that wraps and prints the envelope in base64
(docs/spec/envelope.md). The data key is that of --in, or a fresh one: then
--key-out writes it to a file that only you can read, and without --key-out
nobody learns it before the envelope is opened.

With --offline it needs no server and no token, only the public key as
"ron-kms keys get" prints it, and the tenant that will unwrap.`,
		Example: `  ron-kms wrap --kid KID --key-out data.key > data.key.wrapped
  ron-kms unwrap --kid KID data.key.wrapped --out data.key
  ron-kms keys get KID > key.json
  ron-kms wrap --offline key.json --tenant acme --in data.key > data.key.wrapped`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			switch {
			case offline != "" && (req.KID != "" || tenant == ""):
				return errors.New("--offline takes the kid from its file, and needs --tenant")
			case offline == "" && (req.KID == "" || tenant != ""):
				return errors.New("give --kid; or --offline with --tenant")
			case in != "" && (cmd.Flags().Changed("size") || keyOut != ""):
				return errors.New("--size and --key-out are for a fresh key, not with --in")
			}
			var dataKey []byte
			if in != "" {
				if dataKey, err = readDataKey(in, cmd.InOrStdin()); err != nil {
					return err
				}
				defer secret.Wipe(dataKey)
			}
			out, err := newSecretFile(keyOut)
			if err != nil {
				return err
			}
			defer out.discard() // unless it was kept
			var wrapped, fresh string
			if offline != "" {
				wrapped, err = wrapOffline(offline, tenant, req.AADB64, dataKey, req.Size, out)
			} else {
				if in != "" {
					req.PlaintextKeyB64, req.Size = api.FormatBase64(dataKey), 0
				}
				req.OmitPlaintext = in == "" && keyOut == ""
				err = f.with(cmd.Context(), func(c caller) error {
					var resp api.WrapResponse
					err := c.call(cmd.Context(), "wrap", &req, &resp)
					wrapped, fresh = resp.WrappedB64, resp.PlaintextKeyB64
					return err
				})
				if err == nil && keyOut != "" {
					err = out.writeBase64(fresh)
				}
			}
			if err != nil {
				return err
			}
			// The envelope first: a key that is nowhere sealed is of no use.
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), wrapped); err != nil {
				return err
			}
			return out.keep()
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&req.KID, "kid", "", "key that wraps; its head version seals")
	cmd.Flags().IntVar(&req.Size, "size", api.DataKeySize, "bytes of a fresh data key, 16 to 4096")
	cmd.Flags().StringVar(&in, "in", "", "seal the content of this file (- is standard input), 1 to 4096 bytes")
	cmd.Flags().StringVar(&keyOut, "key-out", "", "write the fresh data key to this new file, of mode 0600")
	cmd.Flags().StringVar(&req.AADB64, "aad-b64", "", "data to bind into the envelope, base64; needed again to unwrap")
	cmd.Flags().StringVar(&offline, "offline", "", "file with the answer of keys get: seal to this public key without a server")
	cmd.Flags().StringVar(&tenant, "tenant", "", "with --offline: the tenant that will unwrap")
	return cmd
}

// wrapOffline seals to the head version of a key of which only the public
// description is there. Without a data key it draws one and puts it into out.
func wrapOffline(file, tenant, aadB64 string, dataKey []byte, size int, out *secretFile) (wrapped string, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	var description struct {
		Key api.Key `json:"key"`
	}
	if err := json.Unmarshal(text, &description); err != nil || description.Key.KID == "" {
		return "", fmt.Errorf("%s is not what `ron-kms keys get` prints", file)
	}
	kid, public, err := headPublic(&description.Key)
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	aad, err := api.ParseAAD(aadB64)
	if err != nil {
		return "", err
	}
	if dataKey == nil {
		if size < 16 || size > alg.MaxDataKey {
			return "", errors.New("--size must be 16 to 4096")
		}
		if dataKey, err = randomKey(size); err != nil {
			return "", err
		}
		defer secret.Wipe(dataKey)
		if err := out.write(dataKey); err != nil {
			return "", err
		}
	}
	// The tenant is the caller's to say: one that a file could choose might
	// not be the one that is meant.
	name := public.Track().Name()
	bound, err := alg.EnvelopeAAD(tenant, kid, name, aad)
	if err != nil {
		return "", err
	}
	e := alg.Envelope{KID: kid, Alg: name}
	if e.Enc, e.Body, err = public.SealTo([]byte(alg.WrapInfo), bound, dataKey); err != nil {
		return "", err
	}
	envelope, err := alg.AppendEnvelope(nil, e)
	if err != nil {
		return "", err
	}
	return api.FormatBase64(envelope), nil
}

// headPublic is the public key of a key's head version, and its kid.
func headPublic(key *api.Key) (kid string, public alg.Public, err error) {
	for _, v := range key.Versions {
		if v.Version != key.Head {
			continue
		}
		named, err := api.ParseKID(v.KID)
		if err != nil || named.Version != v.Version || named.Alg != key.Alg || v.State != api.StateActive {
			return "", alg.Public{}, errors.New("the head version cannot be sealed to")
		}
		a, ok := alg.Lookup(key.Alg)
		if !ok || a.Kind() != alg.KindKEM || a.Name() != key.Alg || len(v.Public) != 1 || v.Public[0].Alg != a.Name() {
			return "", alg.Public{}, fmt.Errorf("a key of algorithm %q has no public key to seal to; ask the server to wrap", key.Alg)
		}
		raw, err := api.ParseBase64(v.Public[0].PubkeyB64)
		if err != nil {
			return "", alg.Public{}, err
		}
		public, err := a.Tracks()[0].ParsePublic(raw)
		return v.KID, public, err
	}
	return "", alg.Public{}, errors.New("the description has no head version; get the key without a version")
}

// randomKey draws n bytes from a generator of its own.
func randomKey(n int) ([]byte, error) {
	arena, err := secret.NewArena(1 << 16)
	if err != nil {
		return nil, err
	}
	key := make([]byte, n)
	return key, errors.Join(arena.Fill(key), arena.Close())
}

func unwrapCommand() *cobra.Command {
	var f clientFlags
	var req api.UnwrapRequest
	var out string
	cmd := &cobra.Command{
		Use:   "unwrap --kid KID --out FILE [ENVELOPE]",
		Short: "Open an envelope and write the data key to a file",
		Long: `Opens the envelope of a file (standard input without one) and writes the data
key to a new file that only you can read.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.WrappedB64, err = readEnvelope(args, cmd.InOrStdin()); err != nil {
				return err
			}
			file, err := newSecretFile(out)
			if err != nil {
				return err
			}
			defer file.discard()
			return f.with(cmd.Context(), func(c caller) error {
				var resp api.UnwrapResponse
				if err := c.call(cmd.Context(), "unwrap", &req, &resp); err != nil {
					return err
				}
				if err := file.writeBase64(resp.PlaintextKeyB64); err != nil {
					return err
				}
				return file.keep()
			})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&req.KID, "kid", "", "key that sealed it")
	cmd.Flags().StringVar(&out, "out", "", "new file for the data key, of mode 0600")
	cmd.Flags().StringVar(&req.AADB64, "aad-b64", "", "the data that was bound into the envelope, base64")
	_ = cmd.MarkFlagRequired("kid")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

func rewrapCommand() *cobra.Command {
	var f clientFlags
	var req api.RewrapRequest
	cmd := &cobra.Command{
		Use:   "rewrap --kid KID [ENVELOPE]",
		Short: "Seal an envelope's data key again, to the head version, without revealing it",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.WrappedB64, err = readEnvelope(args, cmd.InOrStdin()); err != nil {
				return err
			}
			return f.with(cmd.Context(), func(c caller) error {
				var resp api.RewrapResponse
				if err := c.call(cmd.Context(), "rewrap", &req, &resp); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), resp.WrappedB64)
				return err
			})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&req.KID, "kid", "", "key that sealed it")
	cmd.Flags().StringVar(&req.AADB64, "aad-b64", "", "the data that was bound into the envelope, base64")
	_ = cmd.MarkFlagRequired("kid")
	return cmd
}

// readAll reads at most limit bytes of a file, or of stdin for "-".
func readAll(name string, stdin io.Reader, limit int) ([]byte, error) {
	r := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err == nil && len(b) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return b, err
}

func readDataKey(name string, stdin io.Reader) ([]byte, error) {
	b, err := readAll(name, stdin, api.MaxDataKey)
	if err == nil && len(b) == 0 {
		return nil, fmt.Errorf("%s is empty", name)
	}
	return b, err
}

func readEnvelope(args []string, stdin io.Reader) (string, error) {
	name := "-"
	if len(args) > 0 {
		name = args[0]
	}
	b, err := readAll(name, stdin, maxEnvelopeText)
	return string(bytes.TrimSpace(b)), err
}

// A secretFile is a new file for a data key: of mode 0600, and gone again
// unless it is kept. The nil secretFile takes nothing.
type secretFile struct {
	f    *os.File
	kept bool
}

// newSecretFile makes the file before there is a key, so that a key is never
// lost to a name that is taken. It never overwrites. No name is no file.
func newSecretFile(name string) (*secretFile, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &secretFile{f: f}, nil
}

func (s *secretFile) writeBase64(text string) error {
	b, err := api.ParseBase64(text)
	if err != nil || len(b) == 0 {
		return errors.New("the server's answer holds no data key")
	}
	defer secret.Wipe(b)
	return s.write(b)
}

func (s *secretFile) write(b []byte) error {
	if s == nil {
		return nil
	}
	if _, err := s.f.Write(b); err != nil {
		return err
	}
	return s.f.Sync()
}

func (s *secretFile) keep() error {
	if s == nil {
		return nil
	}
	s.kept = true
	return s.f.Close()
}

func (s *secretFile) discard() {
	if s == nil || s.kept {
		return
	}
	s.f.Close()
	os.Remove(s.f.Name()) // nothing was sealed with what is in it
}
