package main

import (
	"context"
	"errors"
	"strings"

	"github.com/google/uuid"

	"github.com/rustyonions/ron-kms/core"
	"github.com/rustyonions/ron-kms/core/api"
)

// signer makes a key and returns a function that signs with it.
func signer(k *core.KMS, token string) (func() error, error) {
	s, err := k.OpenSession(token)
	if err != nil {
		return nil, err
	}
	create, okCreate := core.VerbNamed("create")
	sign, okSign := core.VerbNamed("sign")
	if !okCreate || !okSign {
		return nil, errors.New("the verb table lacks create or sign")
	}
	ctx := context.Background()
	key, err := k.Do(ctx, s, create, &api.CreateRequest{
		OpID: uuid.NewString(), Tenant: s.Tenant(), Purpose: "bench", Alg: "ed25519",
	})
	if err != nil {
		return nil, err
	}
	req := &api.SignRequest{KID: key.(*api.CreateResponse).KID, PayloadB3: strings.Repeat("0", 64)}
	return func() error {
		_, err := k.Do(ctx, s, sign, req)
		return err
	}, nil
}
