package core

import (
	"context"

	"github.com/rustyonions/ron-kms/core/api"
)

func (k *KMS) get(_ context.Context, d *decided) (outcome, error) {
	cur := k.keys.get(d.target.Key)
	if cur == nil {
		return outcome{}, api.NewError(api.ReasonNotFound, "there is no such key")
	}
	resp := &api.GetResponse{Key: cur.public}
	if n := d.target.Key.Version; n != 0 {
		if cur.versions[n] == nil {
			return outcome{}, api.NewError(api.ReasonNotFound, "there is no such version")
		}
		for _, v := range cur.public.Versions {
			if v.Version == n {
				resp.Key.Versions = []api.KeyVersion{v}
			}
		}
	}
	return outcome{response: resp, entries: []entry{{kid: d.target.Key}}}, nil
}

func (k *KMS) list(_ context.Context, d *decided) (outcome, error) {
	req := d.req.(*api.ListRequest)
	limit := req.Limit
	if limit == 0 {
		limit = 100
	}
	after := ""
	if req.After != "" {
		kid, err := api.ParseKID(req.After)
		if err != nil {
			return outcome{}, err
		}
		after = kid.Base().String()
	}
	keys, more := k.keys.page(req.Tenant, req.Purpose, after, limit)
	resp := &api.ListResponse{Keys: make([]api.Key, 0, len(keys))}
	for _, c := range keys {
		resp.Keys = append(resp.Keys, only(c.public, c.record.Head))
	}
	if more {
		resp.Next = keys[len(keys)-1].kid.String()
	}
	return outcome{response: resp, entries: []entry{{}}}, nil
}
