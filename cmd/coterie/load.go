package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"sigs.k8s.io/yaml"

	"github.com/coteriedb/coterie"
)

// A note is a line for the log that is found before there is a log.
type note struct {
	level   zapcore.Level
	message string
	fields  []zap.Field
}

func inform(message string, pairs ...string) *note { return newNote(zapcore.InfoLevel, message, pairs) }
func warn(message string, pairs ...string) *note   { return newNote(zapcore.WarnLevel, message, pairs) }

func newNote(level zapcore.Level, message string, pairs []string) *note {
	n := &note{level: level, message: message}
	for i := 0; i < len(pairs); i += 2 {
		n.fields = append(n.fields, zap.String(pairs[i], pairs[i+1]))
	}
	return n
}

// load turns a command line and an environment ("NAME=value") into settings that are checked. The rules are etcd's:
// a configuration file replaces flags and variables; without one, a variable does what its flag does, and it is an
// error to set both. With -h it returns flag.ErrHelp.
func load(args, environ []string) (*settings, []*note, error) {
	s := newSettings()
	opts := options(s)
	fs := flagSet(opts)
	if err := parseFlags(fs, args); err != nil || s.showVersion {
		return s, nil, err
	}
	env := variables(environ)
	if s.configFile == "" {
		s.configFile = env[variable("config-file")]
	}
	if s.configFile != "" {
		return loadFile(s.configFile)
	}

	where := make(map[string]string) // options that were set, and how
	fs.Visit(func(f *flag.Flag) { where[f.Name] = "--" + f.Name })
	notes, err := applyVariables(fs, env, where)
	if err != nil {
		return nil, nil, err
	}
	more, err := verdicts(opts, where)
	notes = append(notes, more...)
	if where["listen-client-urls"] != "" && where["advertise-client-urls"] == "" {
		err = errors.Join(err, errors.New("--advertise-client-urls is required when --listen-client-urls is set"))
	}
	if err != nil {
		return nil, nil, err
	}
	return finish(s, notes)
}

// parseFlags sets what the command line says.
func parseFlags(fs *flag.FlagSet, args []string) error {
	err := fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return err
	}
	if err != nil {
		if _, name, ok := strings.Cut(err.Error(), "flag provided but not defined: -"); ok {
			return fmt.Errorf("unknown flag --%s%s", name, didYouMean("--"+name, dashed(flagNames(fs))))
		}
		return err
	}
	switch rest := fs.Args(); {
	case len(rest) == 0:
		return nil
	case rest[0] == "gateway" || rest[0] == "grpc-proxy":
		return fmt.Errorf("etcd's %q is not supported yet", rest[0])
	default:
		return fmt.Errorf("unexpected argument %q: flags begin with a dash", rest[0])
	}
}

func flagNames(fs *flag.FlagSet) []string {
	var names []string
	fs.VisitAll(func(f *flag.Flag) { names = append(names, f.Name) })
	return names
}

func dashed(names []string) []string {
	for i := range names {
		names[i] = "--" + names[i]
	}
	return names
}

// variable is the name of the environment variable of a flag.
func variable(flagName string) string {
	return "ETCD_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// variables are etcd's variables in an environment, without those that are empty.
func variables(environ []string) map[string]string {
	env := make(map[string]string)
	for _, pair := range environ {
		if name, value, ok := strings.Cut(pair, "="); ok && value != "" && strings.HasPrefix(name, "ETCD_") {
			env[name] = value
		}
	}
	return env
}

// applyVariables sets flags from their variables, and enters them in where.
func applyVariables(fs *flag.FlagSet, env, where map[string]string) ([]*note, error) {
	byVariable := make(map[string]string)
	for _, name := range flagNames(fs) {
		byVariable[variable(name)] = name
	}
	// Etcd sets these for other purposes.
	delete(byVariable, "ETCD_VERSION")
	delete(byVariable, "ETCD_CONFIG_FILE")

	var notes []*note
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(env)) {
		name, known := byVariable[key]
		switch {
		case !known:
			// Not an error: Kubernetes, for one, sets ETCD_SERVICE_HOST beside a service that is named etcd.
			guess := nearest(key, slices.Sorted(maps.Keys(byVariable)))
			notes = append(notes, warn("unrecognized environment variable", "variable-name", key, "nearest", guess))
		case where[name] != "":
			errs = append(errs, fmt.Errorf("both %s and --%s are set: unset one", key, name))
		default:
			if err := fs.Set(name, env[key]); err != nil {
				errs = append(errs, fmt.Errorf("invalid value %q for %s: %w", env[key], key, err))
			}
			where[name] = key
			value := env[key]
			if name == "discovery-password" {
				value = "…" // logs are read by many
			}
			notes = append(notes, inform("recognized and used environment variable", "variable-name", key, "variable-value", value))
		}
	}
	return notes, errors.Join(errs...)
}

// verdicts collects what there is to say of the options that were set.
func verdicts(opts []option, where map[string]string) ([]*note, error) {
	var notes []*note
	var errs []error
	for i := range opts {
		how, set := where[opts[i].name]
		if !set {
			continue
		}
		n, err := verdict(&opts[i], how)
		if n != nil {
			notes = append(notes, n)
		}
		errs = append(errs, err)
	}
	return notes, errors.Join(errs...)
}

// loadFile takes everything from a configuration file.
func loadFile(path string) (*settings, []*note, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("configuration file: %w", err)
	}
	s := newSettings()
	s.configFile = path
	notes, err := applyFile(s, data)
	if err != nil {
		return nil, nil, fmt.Errorf("configuration file %s:\n%w", path, err)
	}
	notes = append(notes, inform("loaded server configuration; other flags and environment variables are ignored", "path", path))
	return finish(s, notes)
}

// applyFile sets what the YAML of a configuration file says.
func applyFile(s *settings, data []byte) ([]*note, error) {
	asJSON, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, err
	}
	opts := options(s)
	byKey := make(map[string]*option)
	groups := make(map[string]bool) // keys under which there are more keys
	var flagsOnly []string
	for i := range opts {
		if opts[i].from == flagOnly {
			flagsOnly = append(flagsOnly, opts[i].name)
			continue
		}
		key := opts[i].fileKey()
		byKey[key] = &opts[i]
		for j, r := range key {
			if r == '.' {
				groups[key[:j]] = true
			}
		}
	}
	values, err := flatten(asJSON, groups)
	if err != nil {
		return nil, err
	}

	var notes []*note
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(values)) {
		o, known := byKey[key]
		switch {
		case !known && slices.Contains(flagsOnly, key):
			errs = append(errs, fmt.Errorf("%s: only a flag can set this, as with etcd", key))
			continue
		case !known:
			errs = append(errs, fmt.Errorf("unknown key %q%s", key, didYouMean(key, slices.Sorted(maps.Keys(byKey)))))
			continue
		}
		text, ok, err := flagText(o.value.(interface{ fileForm() fileForm }).fileForm(), values[key])
		if ok && err == nil {
			err = o.value.Set(text)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
			continue
		}
		n, err := verdict(o, key)
		if n != nil {
			notes = append(notes, n)
		}
		errs = append(errs, err)
	}
	return notes, errors.Join(errs...)
}

// flatten turns an object of objects into one with dots in its keys. Only groups are taken apart.
func flatten(object json.RawMessage, groups map[string]bool) (map[string]json.RawMessage, error) {
	flat := make(map[string]json.RawMessage)
	var walk func(prefix string, object json.RawMessage) error
	walk = func(prefix string, object json.RawMessage) error {
		var members map[string]json.RawMessage // stays nil for null, an empty section
		if err := json.Unmarshal(object, &members); err != nil {
			if prefix == "" {
				return errors.New("it must consist of lines \"key: value\"")
			}
			return fmt.Errorf("%s: it must be a section with keys of its own", strings.TrimSuffix(prefix, "."))
		}
		for key, value := range members {
			key = prefix + key
			if !groups[key] {
				flat[key] = value
			} else if err := walk(key+".", value); err != nil {
				return err
			}
		}
		return nil
	}
	return flat, walk("", object)
}

// finish derives what follows from the settings, and checks them.
func finish(s *settings, notes []*note) (*settings, []*note, error) {
	c := &s.config
	// Etcd takes its own default for no value at all, even if it is written out.
	if c.InitialCluster == "default=http://localhost:2380" {
		c.InitialCluster = ""
	}
	defaults := coterie.DefaultConfig()
	for _, n := range []*note{
		advertiseHost(c.ListenPeerURLs, defaults.InitialAdvertisePeerURLs, &c.InitialAdvertisePeerURLs),
		advertiseHost(c.ListenClientURLs, defaults.AdvertiseClientURLs, &c.AdvertiseClientURLs),
	} {
		if n != nil {
			notes = append(notes, n)
		}
	}
	for _, n := range []*note{
		atLeastDefault("raft-read-timeout", &c.RaftReadTimeout, defaults.RaftReadTimeout),
		atLeastDefault("raft-write-timeout", &c.RaftWriteTimeout, defaults.RaftWriteTimeout),
	} {
		if n != nil {
			notes = append(notes, n)
		}
	}
	err := errors.Join(c.Validate(), s.log.validate())
	if err != nil {
		return nil, nil, err
	}
	return s, notes, nil
}

// advertiseHost replaces localhost by this machine's address in an advertised URL, if the member listens on all
// addresses and the default is all that it advertises: others could not reach it by that.
func advertiseHost(listen, defaults []string, advertise *[]string) *note {
	if len(listen) == 0 || !slices.Equal(*advertise, defaults) {
		return nil
	}
	l, err := url.Parse(listen[0])
	if err != nil || l.Hostname() != "0.0.0.0" {
		return nil
	}
	host, err := outboundAddress()
	if err != nil {
		return warn("no address of this machine found to advertise", "error", err.Error())
	}
	l.Host = net.JoinHostPort(host, l.Port())
	*advertise = []string{l.String()}
	return inform("listening on all addresses; advertising this machine's", "advertise-url", l.String())
}

// atLeastDefault raises a timeout to its default, as etcd does: shorter ones end connections that are only slow.
func atLeastDefault(name string, timeout *time.Duration, least time.Duration) *note {
	if *timeout < 0 || *timeout >= least {
		return nil // Validate refuses what is negative
	}
	*timeout = least
	return inform(name+" increased to minimum value", "value", least.String())
}

// outboundAddress is the address that this machine has towards the rest of the world. Nothing is sent: connecting a
// datagram socket only looks up the route. The destination is reserved for documentation.
func outboundAddress() (string, error) {
	conn, err := net.Dial("udp", "192.0.2.1:9")
	if err != nil {
		return "", err
	}
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	return host, err
}
