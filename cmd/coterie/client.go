package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// clientFlags are those of etcdctl's flags that say how to reach a server, with its names, defaults and variables.
type clientFlags struct {
	spec           clientv3.ConfigSpec
	secure         clientv3.SecureConfig
	auth           clientv3.AuthConfig
	commandTimeout time.Duration
}

func (c *clientFlags) add(f *pflag.FlagSet) {
	f.StringSliceVar(&c.spec.Endpoints, "endpoints", []string{"127.0.0.1:2379"}, "the server; a snapshot is of one")
	f.StringVar(&c.secure.Cacert, "cacert", "", "verify the server's certificate with this CA bundle")
	f.StringVar(&c.secure.Cert, "cert", "", "present this certificate to the server")
	f.StringVar(&c.secure.Key, "key", "", "private key of --cert")
	f.BoolVar(&c.secure.InsecureTransport, "insecure-transport", true, "no TLS, unless a flag or the endpoint asks for it")
	f.BoolVar(&c.secure.InsecureSkipVerify, "insecure-skip-tls-verify", false, "use TLS without verifying the server's certificate")
	f.StringVar(&c.auth.Username, "user", "", "user, or user:password")
	f.StringVar(&c.auth.Password, "password", "", "password of --user")
	f.StringVar(&c.auth.Token, "auth-jwt-token", "", "token to authenticate with instead")
	f.DurationVar(&c.spec.DialTimeout, "dial-timeout", 2*time.Second, "how long connecting may take")
	f.DurationVar(&c.commandTimeout, "command-timeout", 0, "how long all of it may take (0: as long as it takes)")
	f.DurationVar(&c.spec.KeepAliveTime, "keepalive-time", 2*time.Second, "silence after which the server is pinged")
	f.DurationVar(&c.spec.KeepAliveTimeout, "keepalive-timeout", 6*time.Second, "wait for its answer")
}

// ctlVariables sets flags that were not given from ETCDCTL_ variables, as etcdctl does.
func ctlVariables(f *pflag.FlagSet) error {
	var errs []error
	f.VisitAll(func(flag *pflag.Flag) {
		name := "ETCDCTL_" + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
		value := os.Getenv(name)
		switch {
		case value == "":
		case flag.Changed:
			errs = append(errs, fmt.Errorf("--%s and the variable %s are both set: unset one of them", flag.Name, name))
		default:
			if err := f.Set(flag.Name, value); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	})
	return errors.Join(errs...)
}

// dial connects to the one endpoint.
func (c *clientFlags) dial() (*clientv3.Client, error) {
	if len(c.spec.Endpoints) != 1 {
		return nil, usageError{fmt.Errorf("--endpoints names %d servers, but a snapshot is of one: choose it", len(c.spec.Endpoints))}
	}
	c.spec.Secure = &c.secure
	if c.auth.Username != "" && c.auth.Password == "" {
		var ok bool
		if c.auth.Username, c.auth.Password, ok = strings.Cut(c.auth.Username, ":"); !ok {
			return nil, usageError{errors.New("--user needs a password: --user name:password, --password, or the variable ETCDCTL_PASSWORD")}
		}
	}
	if c.auth.Username != "" || c.auth.Token != "" {
		c.spec.Auth = &c.auth
	}
	config, err := clientv3.NewClientConfig(&c.spec, zap.NewNop())
	if err != nil {
		return nil, usageError{fmt.Errorf("preparing TLS: %w", err)}
	}
	config.Logger = zap.NewNop()
	return clientv3.New(*config)
}
