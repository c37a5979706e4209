package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"
	"lukechampine.com/blake3"

	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
)

// A signedFile is one line of a signature file: what `ron-kms sign` writes and
// `ron-kms verify` reads.
type signedFile struct {
	Path       string          `json:"path,omitempty"` // relative to where it was signed; "" if only a digest was
	PayloadB3  string          `json:"payload_b3,omitempty"`
	Raw        bool            `json:"raw,omitzero"` // the content was signed, not its digest
	ContextB64 string          `json:"context_b64,omitempty"`
	Sigs       []api.Signature `json:"sigs,omitempty"`
	BundleHex  string          `json:"bundle_hex,omitempty"` // the C ABI's form, instead of sigs
}

// maxLine bounds one line of a signature file, in bytes.
const maxLine = 1 << 20

func digestFile(name string) (string, error) {
	var r io.Reader = os.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", err
		}
		defer f.Close()
		r = f
	}
	h := blake3.New(32, nil)
	if _, err := io.Copy(h, r); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func digestCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "digest FILE...",
		Short: "Print the BLAKE3 digests of files, as b3sum does",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			w := bufio.NewWriter(cmd.OutOrStdout())
			for _, name := range args {
				d, err := digestFile(name)
				if err != nil {
					return errors.Join(w.Flush(), err)
				}
				fmt.Fprintf(w, "%s  %s\n", d, name)
			}
			return w.Flush()
		},
	}
}

// validityFlags are the window of a statement.
type validityFlags struct{ notBefore, notAfter string }

func (v *validityFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&v.notBefore, "not-before", "", "the signature holds from then on: RFC 3339, such as 2026-01-02T15:04:05Z")
	cmd.Flags().StringVar(&v.notAfter, "not-after", "", "the signature holds until then, RFC 3339")
}

// get is nil if neither flag is given.
func (v *validityFlags) get() (*api.Validity, error) {
	if v.notBefore == "" && v.notAfter == "" {
		return nil, nil
	}
	var out api.Validity
	for _, bound := range []struct {
		flag, text string
		ms         *int64
	}{{"--not-before", v.notBefore, &out.NotBeforeMS}, {"--not-after", v.notAfter, &out.NotAfterMS}} {
		if bound.text == "" {
			continue
		}
		t, err := time.Parse(time.RFC3339, bound.text)
		if err != nil || t.UnixMilli() <= 0 { // 0 would be no bound
			return nil, fmt.Errorf("%s is not a time after 1970 in the form 2026-01-02T15:04:05Z", bound.flag)
		}
		*bound.ms = t.UnixMilli()
	}
	return &out, nil
}

func signCommand() *cobra.Command {
	var f clientFlags
	var window validityFlags
	var kid, digest, contextB64, algName string
	var raw bool
	cmd := &cobra.Command{
		Use:   "sign --kid KID FILE...",
		Short: "Sign files",
		Long: `Signs the BLAKE3 digest of each file with the key's head version and prints one
JSON object a line: the path, the digest and the signatures. The files
themselves never leave this machine. A window given with --not-before and
--not-after is part of what is signed, and stands in the lines for verify.

A key of scheme raw signs content, not digests: --raw sends it, at most 64 KiB a
file, over the Unix socket or to a store opened with --dir.`,
		Example: "  ron-kms sign --kid KID *.tar.gz > SIGNATURES\n  ron-kms verify SIGNATURES",
		RunE: func(cmd *cobra.Command, args []string) error {
			if (digest == "") == (len(args) == 0) {
				return errors.New("give files, or --digest")
			}
			if digest != "" && raw {
				return errors.New("--raw signs the content of files, not a digest")
			}
			if digest != "" {
				args = []string{""}
			}
			validity, err := window.get()
			if err != nil {
				return err
			}
			return f.with(cmd.Context(), func(c caller) error {
				w := bufio.NewWriter(cmd.OutOrStdout())
				for _, name := range args {
					line := signedFile{Path: name, PayloadB3: digest, Raw: raw, ContextB64: contextB64}
					req := &api.SignRequest{KID: kid, ContextB64: contextB64, Validity: validity, Alg: algName}
					if name != "" {
						var err error
						if raw {
							req.PayloadB64, err = rawContent(name)
						} else {
							line.PayloadB3, err = digestFile(name)
						}
						if err != nil {
							return errors.Join(w.Flush(), err)
						}
					}
					req.PayloadB3 = line.PayloadB3
					var resp api.SignResponse
					if err := c.call(cmd.Context(), "sign", req, &resp); err != nil {
						return errors.Join(w.Flush(), err)
					}
					line.Sigs = resp.Sigs
					b, err := api.Encode(line)
					if err != nil {
						return errors.Join(w.Flush(), err)
					}
					fmt.Fprintln(w, string(b))
				}
				return w.Flush()
			})
		},
	}
	f.add(cmd)
	window.add(cmd)
	cmd.Flags().StringVar(&kid, "kid", "", "key; with #vN only if that is the head version")
	cmd.Flags().StringVar(&digest, "digest", "", "sign this BLAKE3 digest (64 hex digits) instead of files")
	cmd.Flags().StringVar(&contextB64, "context-b64", "", "context to bind into the signature, base64")
	cmd.Flags().StringVar(&algName, "alg", "", "only this track of the key, if policy allows")
	cmd.Flags().BoolVar(&raw, "raw", false, "sign the content itself, with a key of scheme raw")
	_ = cmd.MarkFlagRequired("kid")
	return cmd
}

// rawContent is what a file holds, in base64.
func rawContent(name string) (string, error) {
	b, err := readAll(name, os.Stdin, api.MaxRawSize)
	if err == nil && len(b) == 0 {
		return "", fmt.Errorf("%s is empty", name)
	}
	return api.FormatBase64(b), err
}

func verifyCommand() *cobra.Command {
	var f clientFlags
	var mode string
	var noFiles bool
	cmd := &cobra.Command{
		Use:   "verify [SIGNATURES...]",
		Short: "Verify files against their signatures",
		Long: `Reads the lines that "ron-kms sign" wrote (from standard input without
arguments). For each it computes the file's digest anew and asks whether the
signatures hold. Outside its window a signature does not. It exits with 1
unless all of them do.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"-"}
			}
			return f.with(cmd.Context(), func(c caller) error {
				v := verifier{caller: c, mode: mode, noFiles: noFiles, out: cmd.ErrOrStderr()}
				for _, name := range args {
					if err := v.file(cmd.Context(), name, cmd.InOrStdin()); err != nil {
						return err
					}
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%d of %d signatures valid\n", v.good, v.total)
				if v.total == 0 {
					return errors.New("nothing to verify")
				}
				if v.good != v.total {
					return fmt.Errorf("%d signatures are not valid", v.total-v.good)
				}
				return nil
			})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&mode, "mode", "", "demand more than policy does: and, or pq_only")
	cmd.Flags().BoolVar(&noFiles, "no-files", false, "trust the digests in the lines; do not read the files")
	return cmd
}

type verifier struct {
	caller
	mode        string
	noFiles     bool
	out         io.Writer
	good, total int
}

func (v *verifier) file(ctx context.Context, name string, stdin io.Reader) error {
	r := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		r = f
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		var line signedFile
		if err := json.Unmarshal(lines.Bytes(), &line, json.RejectUnknownMembers(true)); err != nil {
			return fmt.Errorf("%s line %d is not a signature line of ron-kms", name, n)
		}
		v.total++
		problem, err := v.line(ctx, &line)
		if err != nil {
			return fmt.Errorf("%s line %d: %w", name, n, err)
		}
		if problem == "" {
			v.good++
			continue
		}
		fmt.Fprintf(v.out, "NOT VALID %q: %s\n", line.Path, problem)
	}
	return lines.Err()
}

// line verifies one line; problem says in a word why it is not valid.
func (v *verifier) line(ctx context.Context, line *signedFile) (problem string, err error) {
	req := &api.VerifyRequest{PayloadB3: line.PayloadB3, ContextB64: line.ContextB64}
	if line.Raw {
		if line.Path == "" || line.PayloadB3 != "" || v.noFiles {
			return "", errors.New("a signature over content is verified with the file alone")
		}
		req.PayloadB64, err = rawContent(line.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return "the file is missing", nil
		}
		if err != nil {
			return "", err
		}
	} else if line.Path != "" && !v.noFiles {
		d, err := digestFile(line.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return "the file is missing", nil
		}
		if err != nil {
			return "", err
		}
		if d != line.PayloadB3 {
			return "the file has changed", nil
		}
	}
	if line.BundleHex != "" {
		if line.Sigs, err = unbundle(line.BundleHex); err != nil {
			return "", err
		}
	}
	req.Sigs = line.Sigs
	if v.mode != "" {
		req.Policy = &api.VerifyPolicy{Mode: v.mode}
	}
	var resp api.VerifyResponse
	if err := v.call(ctx, "verify", req, &resp); err != nil {
		return "", err
	}
	if !resp.OK {
		return resp.Details.Reason, nil
	}
	return "", nil
}

func unbundle(text string) ([]api.Signature, error) {
	raw, err := hex.DecodeString(text)
	if err != nil {
		return nil, errors.New("bundle_hex is not hex")
	}
	bundle, err := alg.ParseBundle(raw)
	if err != nil {
		return nil, err
	}
	sigs := make([]api.Signature, len(bundle))
	for i, s := range bundle {
		sigs[i] = api.Signature{KID: s.KID, Alg: s.Alg, SignatureB64: api.FormatBase64(s.Value)}
	}
	return sigs, nil
}

func preimageCommand() *cobra.Command {
	var window validityFlags
	var kidText, digest, contextB64, suite string
	var asHex bool
	cmd := &cobra.Command{
		Use:   "preimage --kid KID#vN --digest HEX",
		Short: "Print the bytes that a key signs for a digest",
		Long: `Prints the preimage of scheme ron-kms/v1 (docs/spec/preimage.md), so that a
signature can be checked with a tool that knows nothing of ron-kms:

  ron-kms preimage --kid KID#v1 --digest HEX > preimage
  openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in preimage -sigfile sig`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			kid, err := api.ParseKID(kidText)
			if err != nil {
				return err
			}
			if kid.Version == 0 {
				return errors.New("the kid needs its version: #vN")
			}
			d, err := api.ParseDigest(digest)
			if err != nil {
				return err
			}
			ctx, err := api.ParseContext(contextB64)
			if err != nil {
				return err
			}
			validity, err := window.get()
			if err != nil {
				return err
			}
			if suite == "" {
				suite = kid.Alg
			}
			s := alg.Statement{Suite: suite, KID: kid.String(), Context: ctx, Digest: d}
			s.NotBefore, s.NotAfter = validity.Bounds()
			p, err := s.AppendPreimage(nil)
			if err != nil {
				return err
			}
			if asHex {
				p = append([]byte(hex.EncodeToString(p)), '\n')
			}
			_, err = cmd.OutOrStdout().Write(p)
			return err
		},
	}
	window.add(cmd)
	cmd.Flags().StringVar(&kidText, "kid", "", "key and version that signed")
	cmd.Flags().StringVar(&suite, "suite", "", "suite of that version, as keys get shows it (default: the kid's algorithm, right unless the version has a companion)")
	cmd.Flags().StringVar(&digest, "digest", "", "BLAKE3 digest of the payload, 64 hex digits")
	cmd.Flags().StringVar(&contextB64, "context-b64", "", "context that was bound, base64")
	cmd.Flags().BoolVar(&asHex, "hex", false, "hex digits instead of bytes")
	_ = cmd.MarkFlagRequired("kid")
	_ = cmd.MarkFlagRequired("digest")
	return cmd
}
