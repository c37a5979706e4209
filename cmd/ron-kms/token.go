package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/capability"
	"github.com/rustyonions/ron-kms/core/capability/mint"
	"github.com/rustyonions/ron-kms/core/secret"
)

func tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make, narrow, read and revoke capability tokens",
		Long: `A token says what its holder may do: for which tenant, with which scopes, on
which keys, and until when. Whoever holds a token can narrow it without asking
anybody, and nobody can widen one. docs/spec/token.md has the format.`,
	}
	cmd.AddCommand(mintCommand(), attenuateCommand(), inspectCommand(), revokeCommand(), rootsCommand())
	return cmd
}

// tokenRequest is what a token shall allow.
type tokenRequest struct {
	tenant                   string
	scopes                   []string
	ttl                      time.Duration
	kidPrefix, purposePrefix string
	caveats                  []string // further ones, as text
}

func (r tokenRequest) build(now time.Time) ([]capability.Caveat, error) {
	var list []capability.Caveat
	if len(r.scopes) > 0 {
		c, err := capability.ScopeCaveat(r.scopes...)
		if err != nil {
			return nil, fmt.Errorf("%w; scopes are %s", err, strings.Join(capability.ScopeList(), " "))
		}
		list = append(list, c)
	}
	var texts []string
	for name, value := range map[string]string{"tenant": r.tenant, "kid-prefix": r.kidPrefix, "purpose-prefix": r.purposePrefix} {
		if value != "" {
			texts = append(texts, name+"="+value)
		}
	}
	if r.ttl != 0 {
		if r.ttl < time.Second {
			return nil, errors.New("--ttl must be a second or more")
		}
		texts = append(texts, "exp="+strconv.FormatInt(now.Add(r.ttl).Unix(), 10))
	}
	for _, text := range append(texts, r.caveats...) {
		c, err := capability.ParseCaveat(text)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

func (r *tokenRequest) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&r.scopes, "scope", nil, "scopes, comma separated: "+strings.Join(capability.ScopeList(), " "))
	cmd.Flags().StringVar(&r.kidPrefix, "kid-prefix", "", "only keys under this kid, whole segments: acme/audit")
	cmd.Flags().StringVar(&r.purposePrefix, "purpose-prefix", "", "only keys of this purpose, or of purposes below it (purpose:…)")
	// Not a list: commas are part of some caveats.
	cmd.Flags().StringArrayVar(&r.caveats, "caveat", nil, "a caveat as text, name=value: verb alg aud rate max-bytes payload-b3 client-key peer-uid nbf …")
}

func mintCommand() *cobra.Command {
	var f serverFlags
	r := tokenRequest{}
	cmd := &cobra.Command{
		Use:   "mint",
		Short: "Make a token",
		Long: `Makes a token under the store's newest root key and prints it. It needs the
store's passphrase, and works while a server has the store open.`,
		Example: "  ron-kms token mint --dir ./store --tenant acme --scope kms:sign,kms:verify --ttl 12h > token",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.tenant == "" || len(r.scopes) == 0 {
				return errors.New("a token needs --tenant and --scope")
			}
			cfg, err := f.config()
			if err != nil {
				return err
			}
			p, err := passphrase(cfg, false)
			if err != nil {
				return err
			}
			defer secret.Wipe(p)
			keys, err := core.OpenTokenKeys(cfg.Dir, p)
			if err != nil {
				return err
			}
			defer keys.Close()
			caveats, err := r.build(time.Now())
			if err != nil {
				return err
			}
			id := keys.Newest()
			token, err := mint.New(id, func(use func([]byte)) error { return keys.Root(id, use) }, caveats...)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), token)
			return nil
		},
	}
	f.addStore(cmd)
	r.addFlags(cmd)
	cmd.Flags().StringVar(&r.tenant, "tenant", "", "the tenant that the holder acts for")
	cmd.Flags().DurationVar(&r.ttl, "ttl", time.Hour, "how long the token lasts")
	return cmd
}

func attenuateCommand() *cobra.Command {
	r := tokenRequest{}
	cmd := &cobra.Command{
		Use:   "attenuate [TOKEN-FILE]",
		Short: "Narrow a token, offline",
		Long: `Reads a token from a file, from standard input, or from KMS_TOKEN or
KMS_TOKEN_FILE, adds caveats, and prints the narrower token. It needs no server
and no key.`,
		Example: "  ron-kms token attenuate --scope kms:verify --ttl 10m token > narrow",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := readToken(cmd, args)
			if err != nil {
				return err
			}
			caveats, err := r.build(time.Now())
			if err != nil {
				return err
			}
			if len(caveats) == 0 {
				return errors.New("nothing to add: give --scope, --ttl, --kid-prefix, --purpose-prefix or --caveat")
			}
			narrow, err := capability.Attenuate(token, caveats...)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), narrow)
			return nil
		},
	}
	r.addFlags(cmd)
	cmd.Flags().DurationVar(&r.ttl, "ttl", 0, "expire after this time, if the token does not already expire earlier")
	return cmd
}

func inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect [TOKEN-FILE]",
		Short: "Show what a token says, without verifying it",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := readToken(cmd, args)
			if err != nil {
				return err
			}
			info, err := capability.Inspect(token)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "actor     %s\nroot key  %s\nissued    %s\n", info.ID, info.RootKeyID, info.Issued.Format(time.RFC3339))
			for _, c := range info.UnverifiedCaveats {
				fmt.Fprintf(out, "caveat    %s%s\n", c, explain(c))
			}
			if info.Problem != "" {
				fmt.Fprintf(out, "problem   %s: every server refuses it\n", info.Problem)
			}
			fmt.Fprintln(out, "(not verified: only a server with the root key can tell whether it is genuine)")
			return nil
		},
	}
}

func revokeCommand() *cobra.Command {
	var f serverFlags
	var id, tenant, before string
	cmd := &cobra.Command{
		Use:   "revoke [TOKEN-FILE]",
		Short: "End a token, or all of a tenant's older tokens",
		Long: `Adds a line to the store's list of revocations, tokens/revoked. A running server
takes notice within seconds, in sessions that are open too. It needs neither
the passphrase nor the server.

A token is named by its file ("-" for standard input) or, with --id, by the
name that audit records and "token inspect" give it. All tokens that were
narrowed from it end with it. --tenant ends the tokens of a tenant that were
minted before a time; tokens that are minted later count. To end all tokens
under a root key, retire the key (ron-kms token roots retire).`,
		Example: "  ron-kms token revoke --dir ./store leaked-token\n  ron-kms token revoke --dir ./store --id cap:9487be60e6c87a93\n  ron-kms token revoke --dir ./store --tenant acme --before 2026-01-02T15:04:05Z",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			named := len(args)
			for _, flag := range []string{id, tenant} {
				if flag != "" {
					named++
				}
			}
			if named != 1 || before != "" && tenant == "" {
				return errors.New("give one of TOKEN-FILE, --id and --tenant; --before goes with --tenant")
			}
			r := capability.Revocation{Token: id}
			switch {
			case tenant != "":
				seconds, err := revokedBefore(before, time.Now())
				if err != nil {
					return err
				}
				r = capability.Revocation{Tenant: tenant, Before: seconds}
			case len(args) == 1:
				token, err := readToken(cmd, args)
				if err != nil {
					return err
				}
				info, err := capability.Inspect(token)
				if err != nil {
					return err
				}
				r.Token = info.ID
			}
			if r.String() == "" {
				return errors.New("not well-formed: a token's name is cap: or ron: and 16 hex digits; a tenant is a label")
			}
			cfg, err := f.config()
			if err != nil {
				return err
			}
			if err := core.Revoke(cfg.Dir, r); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "revoked:", r)
			return nil
		},
	}
	cmd.Flags().StringVar(&f.dir, "dir", "", "folder of the store (KMS_DIR)")
	cmd.Flags().StringVar(&id, "id", "", "the token's name in audit records: cap:…")
	cmd.Flags().StringVar(&tenant, "tenant", "", "all tokens of this tenant that were minted before --before")
	cmd.Flags().StringVar(&before, "before", "", "a time (RFC 3339); without it, now")
	return cmd
}

// revokedBefore is the first second whose tokens still count. Without a time
// that is the next one, so that what was minted until now ends.
func revokedBefore(text string, now time.Time) (int64, error) {
	if text == "" {
		return now.Unix() + 1, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return 0, errors.New("--before is not a time such as 2026-01-02T15:04:05Z")
	}
	return t.Unix(), nil
}

func rootsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "roots",
		Short: "List, rotate and retire the root keys of tokens",
		Long: `Tokens are minted under the newest root key and verified under all of them. To
change the key, rotate, let the tokens under the old one expire or replace
them, and retire it. A running server takes notice of both by itself.`,
	}
	var f serverFlags
	list := &cobra.Command{
		Use:   "list",
		Short: "List the root keys",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.config()
			if err != nil {
				return err
			}
			roots, err := core.TokenRoots(cfg.Dir)
			if err != nil {
				return err
			}
			for _, r := range roots {
				state := "verifies"
				switch {
				case r.Newest:
					state = "newest: mints and verifies"
				case r.Retired:
					state = "retired"
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s\t%s\n", r.ID, state)
			}
			return nil
		},
	}
	list.Flags().StringVar(&f.dir, "dir", "", "folder of the store (KMS_DIR)")
	cmd.AddCommand(list, rotateRootCommand(), retireRootCommand())
	return cmd
}

func rotateRootCommand() *cobra.Command {
	var f serverFlags
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Make a new root key, which new tokens are minted under",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.config()
			if err != nil {
				return err
			}
			p, err := passphrase(cfg, false)
			if err != nil {
				return err
			}
			defer secret.Wipe(p)
			id, err := core.RotateTokenKeys(cfg.Dir, p)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), id)
			return nil
		},
	}
	f.addStore(cmd)
	return cmd
}

func retireRootCommand() *cobra.Command {
	var f serverFlags
	cmd := &cobra.Command{
		Use:   "retire ID",
		Short: "End all tokens under a root key, and remove the key",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := f.config()
			if err != nil {
				return err
			}
			return core.RetireTokenKey(cfg.Dir, args[0])
		},
	}
	cmd.Flags().StringVar(&f.dir, "dir", "", "folder of the store (KMS_DIR)")
	return cmd
}

// explain shows a time as people read it.
func explain(caveat string) string {
	name, value, _ := strings.Cut(caveat, "=")
	seconds, err := strconv.ParseInt(value, 10, 64)
	if err != nil || name != "exp" && name != "nbf" {
		return ""
	}
	t := time.Unix(seconds, 0).UTC()
	note := ""
	if name == "exp" && time.Now().After(t) {
		note = ", expired"
	}
	return "  (" + t.Format(time.RFC3339) + note + ")"
}

// readToken reads a token from a file argument, "-" or a pipe, or as every
// client command does.
func readToken(cmd *cobra.Command, args []string) (string, error) {
	if len(args) == 1 && args[0] != "-" {
		return readTokenFile(args[0])
	}
	if len(args) == 1 || os.Getenv("KMS_TOKEN") == "" && os.Getenv("KMS_TOKEN_FILE") == "" {
		line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), capability.MaxTokenBytes+2)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		return strings.TrimSuffix(line, "\n"), nil
	}
	return clientToken("")
}

func readTokenFile(name string) (string, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

// clientToken finds the caller's token: a flag's file, KMS_TOKEN_FILE, or
// KMS_TOKEN.
func clientToken(file string) (string, error) {
	if file == "" {
		file = os.Getenv("KMS_TOKEN_FILE")
	}
	if file != "" {
		return readTokenFile(file)
	}
	if t := os.Getenv("KMS_TOKEN"); t != "" {
		return t, nil
	}
	return "", errors.New("no token: give --token-file, or set KMS_TOKEN_FILE or KMS_TOKEN (make one with `ron-kms token mint`)")
}
