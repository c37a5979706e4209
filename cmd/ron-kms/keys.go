package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/rustyonions/ron-kms/core/api"
)

func keysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Create, derive, rotate, show, list and destroy keys",
	}
	cmd.AddCommand(createCommand(), deriveCommand(), rotateCommand(), getCommand(), listCommand(), destroyCommand())
	return cmd
}

// operation is the op_id of a command: fresh, unless the user repeats one.
type operation struct{ id string }

func (o *operation) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.id, "op-id", "", "UUID of this operation; repeat it to retry safely (default: a fresh one)")
}

func (o *operation) get() string {
	if o.id == "" {
		o.id = uuid.NewString()
	}
	return o.id
}

// printJSON prints v as people and jq read it.
func printJSON(w io.Writer, v any) error {
	b, err := api.Encode(v)
	if err != nil {
		return err
	}
	text := jsontext.Value(b)
	if err := text.Indent(jsontext.WithIndent("  ")); err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, string(text))
	return err
}

func createCommand() *cobra.Command {
	var f clientFlags
	var op operation
	var req api.CreateRequest
	var policy api.KeyPolicy
	var quiet bool
	cmd := &cobra.Command{
		Use:   "create --purpose PURPOSE [--alg ALG]",
		Short: "Create a key",
		Long: `Creates a key. Its algorithm says what it is for and never changes:

  sign, verify            ed25519, ml-dsa-44, -65 or -87, or ed25519+ml-dsa-44, -65 or -87 (hybrid)
  wrap, unwrap, rewrap    x25519, ml-kem-768, ml-kem-1024, x25519+ml-kem-768 (hybrid),
                          aes-256-gcm or chacha20-poly1305
  derive                  hkdf-sha256`,
		Example: "  ron-kms keys create --purpose release --alg ed25519+ml-dsa-65\n  ron-kms keys create --purpose backup --alg x25519+ml-kem-768",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if req.Tenant == "" {
				if req.Tenant, err = tokenTenant(f.tokenFile); err != nil {
					return err
				}
			}
			req.OpID = op.get()
			if policy != (api.KeyPolicy{}) {
				req.Policy = &policy
			}
			return f.with(cmd.Context(), func(c caller) error {
				var resp api.CreateResponse
				if err := c.call(cmd.Context(), "create", &req, &resp); err != nil {
					return err
				}
				if quiet {
					fmt.Fprintln(cmd.OutOrStdout(), resp.KID)
					return nil
				}
				return printJSON(cmd.OutOrStdout(), resp)
			})
		},
	}
	f.add(cmd)
	op.add(cmd)
	cmd.Flags().StringVar(&req.Tenant, "tenant", "", "tenant (default: the token's)")
	cmd.Flags().StringVar(&req.Purpose, "purpose", "", "purpose: a label such as release or audit:eu")
	cmd.Flags().StringVar(&req.Alg, "alg", "ed25519+ml-dsa-65", "algorithm, see above")
	cmd.Flags().StringVar((*string)(&req.Scheme), "scheme", "", "what a signing key signs: ron-kms/v1, raw-b3 or raw; it never changes (default ron-kms/v1)")
	cmd.Flags().StringVar(&policy.VerifyMode, "verify-mode", "", "or, and, or pq_only (default: and for a hybrid key)")
	cmd.Flags().BoolVar(&policy.ProduceHybrid, "produce-hybrid", false, "give an ed25519 key an ml-dsa-65 companion that signs with it")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the kid only")
	_ = cmd.MarkFlagRequired("purpose")
	return cmd
}

// keyCommand is a command about one key that prints its answer.
func keyCommand[Resp any](use, short string, verb string, mutates bool, build func(kid, opID string) api.Request) *cobra.Command {
	var f clientFlags
	var op operation
	cmd := &cobra.Command{
		Use:   use + " KID",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd.Context(), func(c caller) error {
				resp := new(Resp)
				if err := c.call(cmd.Context(), verb, build(args[0], op.get()), resp); err != nil {
					return err
				}
				return printJSON(cmd.OutOrStdout(), resp)
			})
		},
	}
	f.add(cmd)
	if mutates {
		op.add(cmd)
	}
	return cmd
}

func deriveCommand() *cobra.Command {
	var context, algName string
	cmd := keyCommand[api.DeriveResponse]("derive", "Make the key that a hkdf-sha256 key gives for a context; always the same one", "derive", true,
		func(kid, opID string) api.Request {
			return &api.DeriveRequest{OpID: opID, KID: kid, Context: context, Alg: algName}
		})
	cmd.Flags().StringVar(&context, "context", "", "label that tells this key from others of the same parent")
	cmd.Flags().StringVar(&algName, "alg", "", "algorithm of the new key: one track, such as ed25519 or aes-256-gcm")
	_ = cmd.MarkFlagRequired("context")
	_ = cmd.MarkFlagRequired("alg")
	return cmd
}

func rotateCommand() *cobra.Command {
	return keyCommand[api.RotateResponse]("rotate", "Make a new version of a key; older ones go on verifying", "rotate", true,
		func(kid, opID string) api.Request { return &api.RotateRequest{KID: kid, OpID: opID} })
}

func destroyCommand() *cobra.Command {
	return keyCommand[api.DestroyResponse]("destroy", "Erase the private part of a key, or of the one version named; for ever", "destroy", true,
		func(kid, opID string) api.Request { return &api.DestroyRequest{KID: kid, OpID: opID} })
}

func getCommand() *cobra.Command {
	return keyCommand[api.GetResponse]("get", "Show a key's public material", "get", false,
		func(kid, _ string) api.Request { return &api.GetRequest{KID: kid} })
}

func listCommand() *cobra.Command {
	var f clientFlags
	var req api.ListRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the tenant's keys",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if req.Tenant == "" {
				if req.Tenant, err = tokenTenant(f.tokenFile); err != nil {
					return err
				}
			}
			return f.with(cmd.Context(), func(c caller) error {
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
				for {
					var resp api.ListResponse
					if err := c.call(cmd.Context(), "list", &req, &resp); err != nil {
						return err
					}
					for _, k := range resp.Keys {
						if asJSON {
							b, err := api.Encode(k)
							if err != nil {
								return err
							}
							fmt.Fprintln(w, string(b))
							continue
						}
						fmt.Fprintf(w, "%s\t%s\n", k.KID, k.State)
					}
					if resp.Next == "" {
						return w.Flush()
					}
					req.After = resp.Next
				}
			})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&req.Tenant, "tenant", "", "tenant (default: the token's)")
	cmd.Flags().StringVar(&req.Purpose, "purpose", "", "only keys of this purpose")
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object a line")
	return cmd
}
