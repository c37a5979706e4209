package core

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/rustyonions/ron-kms/core/admit"
	"github.com/rustyonions/ron-kms/core/alg"
	"github.com/rustyonions/ron-kms/core/api"
	"github.com/rustyonions/ron-kms/core/capability"
	"github.com/rustyonions/ron-kms/core/capability/ronauth"
	"github.com/rustyonions/ron-kms/core/config"
	"github.com/rustyonions/ron-kms/core/policy"
	"github.com/rustyonions/ron-kms/core/secret"
)

// Who may do what, and how much, comes from outside the store: a policy file or
// service, limits, keys of other issuers of tokens. What is in files is read
// again while the KMS is open.

// reloadInterval is how often files are looked at.
const reloadInterval = 2 * time.Second

// maxSettings bounds the files read here, in bytes.
const maxSettings = 1 << 20

// openPolicy makes the decision points that cfg names.
func (k *KMS) openPolicy(clock func() time.Time) error {
	mode, err := alg.ParseMode(k.cfg.PQVerifyMode)
	if err != nil {
		return err
	}
	o := policy.Options{
		Static: policy.Static{
			Mode: mode, ProduceHybrid: k.cfg.PQProduceHybrid, RolloutPercent: k.cfg.PQRolloutPercent, GraceUntil: k.cfg.PQLegacyGraceUntil.Time,
		},
		Clock: clock,
	}
	if k.cfg.PolicyFile != "" {
		f, err := policy.OpenFile(k.cfg.PolicyFile, policy.FileOptions{})
		if err != nil {
			return err
		}
		o.Local, k.policyFile = f, f
	}
	if k.cfg.PolicyURL != "" {
		remote, err := policy.NewHTTP(policy.HTTPOptions{URL: k.cfg.PolicyURL, Path: k.cfg.PolicyPath, TokenFile: k.cfg.PolicyTokenFile})
		if err != nil {
			return err
		}
		breaker, err := admit.NewBreaker(admit.BreakerOptions{})
		if err != nil {
			remote.Close()
			return err
		}
		o.Remote, o.Breaker = remote, breaker
	}
	k.policy, err = policy.NewEngine(o)
	if err != nil {
		return err
	}
	k.metrics.Migration(k.policy.Static().Phase(), mode.String(), k.cfg.PQRolloutPercent)
	return nil
}

// openLimits reads the limits that cfg names.
func (k *KMS) openLimits() error {
	limits, err := readLimits(k.cfg)
	if err == nil {
		k.limits, err = admit.New(limits, admit.Options{})
	}
	return err
}

func readLimits(cfg *config.Config) (admit.Limits, error) {
	limits := admit.DefaultLimits()
	if cfg.LimitsFile == "" {
		return limits, nil
	}
	b, err := readBounded(cfg.LimitsFile)
	if err != nil {
		return limits, err
	}
	if err := json.Unmarshal(b, &limits, json.RejectUnknownMembers(true)); err != nil {
		return limits, fmt.Errorf("%s: %w", cfg.LimitsFile, err)
	}
	if err := limits.Validate(); err != nil {
		return limits, fmt.Errorf("%s: %w", cfg.LimitsFile, err)
	}
	return limits, nil
}

func readBounded(name string) (b []byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err = io.ReadAll(io.LimitReader(f, maxSettings+1))
	if err == nil && len(b) > maxSettings {
		err = fmt.Errorf("%s is longer than %d bytes", name, maxSettings)
	}
	return b, err
}

// tokenVerifier verifies the store's own tokens, and those of other issuers that
// cfg names; what was verified is kept for a while.
func (k *KMS) tokenVerifier(a *secret.Arena, clock func() time.Time) (capability.TokenVerifier, error) {
	var v capability.TokenVerifier = capability.NewVerifier(k.tokens)
	if k.cfg.RonAuthKeysFile != "" {
		keys, err := k.ronAuthKeys(a)
		if err != nil {
			return nil, err
		}
		foreign, err := ronauth.NewVerifier(ronauth.Options{Keys: keys, Amnesia: k.cfg.IsAmnesia(), Revocations: k.tokens})
		if err != nil {
			return nil, err
		}
		v = foreign.Beside(v)
	}
	return capability.NewCache(v, capability.CacheOptions{Clock: clock}), nil
}

// ronAuthKeys reads lines "kid hex-key tenant[,tenant]". Whoever has such a key
// can mint, so the file must be its owner's alone.
func (k *KMS) ronAuthKeys(a *secret.Arena) (map[string]ronauth.Key, error) {
	name := k.cfg.RonAuthKeysFile
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s is readable by others: chmod 600 it", name)
	}
	b, err := readBounded(name)
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(b)
	keys := make(map[string]ronauth.Key)
	for n, line := range strings.Split(string(b), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		var key []byte
		if len(fields) == 3 {
			key, err = hex.DecodeString(fields[1])
		}
		if len(fields) != 3 || err != nil || len(key) != 32 {
			return nil, fmt.Errorf("%s: line %d is not: kid, 64 hex digits, tenants", name, n+1)
		}
		held, err := a.New(len(key))
		if err == nil {
			k.secrets = append(k.secrets, held)
			err = held.Use(func(p []byte) { copy(p, key) })
		}
		secret.Wipe(key)
		if err != nil {
			return nil, err
		}
		if _, twice := keys[fields[0]]; twice {
			return nil, fmt.Errorf("%s: line %d: the kid was there before", name, n+1)
		}
		keys[fields[0]] = ronauth.Key{Secret: held, Tenants: strings.Split(fields[2], ",")}
	}
	return keys, nil
}

// watch looks at the files again and again until the KMS closes. What cannot be
// read or is not valid changes nothing, and is said.
func (k *KMS) watch() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if k.policyFile != nil {
		k.done.Go(func() {
			k.policyFile.Watch(ctx, reloadInterval, func(err error) { k.reloaded("policy file", err) })
		})
	}
	var last time.Time
	if info, err := os.Stat(k.cfg.LimitsFile); err == nil {
		last = info.ModTime()
	}
	tick := time.NewTicker(reloadInterval)
	defer tick.Stop()
	for {
		select {
		case <-k.stop:
			return
		case <-tick.C:
		}
		info, err := os.Stat(k.cfg.LimitsFile)
		if k.cfg.LimitsFile == "" || err != nil || info.ModTime().Equal(last) {
			continue
		}
		last = info.ModTime()
		k.reloaded("limits", k.reloadLimits())
	}
}

func (k *KMS) reloadLimits() error {
	limits, err := readLimits(k.cfg)
	if err != nil {
		return err
	}
	return k.limits.Reload(limits)
}

// Reload reads the policy file and the limits again, and forgets decisions that
// were kept. After an error what cannot be read is as it was.
func (k *KMS) Reload() error {
	var errs []error
	if k.policyFile != nil {
		errs = append(errs, k.policyFile.Reload())
	}
	k.policy.Forget()
	errs = append(errs, k.reloadLimits())
	if err := errors.Join(errs...); err != nil {
		return api.WrapError(api.ReasonConfig, "not everything could be read again; what could not is as it was", err)
	}
	return nil
}

func (k *KMS) reloaded(what string, err error) {
	if err != nil {
		k.log.Error("not taken; what was read before goes on", "what", what, "cause", err.Error())
		return
	}
	k.log.Info("read again", "what", what)
}
