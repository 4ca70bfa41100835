package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A fileForm is how an option's value is written in the configuration file. Etcd's rules differ from those of flags:
// durations are whole nanoseconds, and some lists are lists.
type fileForm int

const (
	fileText fileForm = iota
	fileBool
	fileNumber
	fileDuration
	fileList
)

// A scalar is an option's value of one type. It implements flag.Value.
type scalar[T any] struct {
	to     *T
	parse  func(string) (T, error)
	format func(T) string
	form   fileForm
}

func (v *scalar[T]) Set(s string) error {
	parsed, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.to = parsed
	return nil
}

func (v *scalar[T]) String() string {
	if v.to == nil { // package flag makes zero values of its own
		return ""
	}
	return v.format(*v.to)
}

// IsBoolFlag tells package flag that "-name" alone means true.
func (v *scalar[T]) IsBoolFlag() bool { return v.form == fileBool }

func (v *scalar[T]) fileForm() fileForm { return v.form }

func text(to *string) *scalar[string] {
	same := func(s string) string { return s }
	return &scalar[string]{to, func(s string) (string, error) { return s, nil }, same, fileText}
}

func oneOf(to *string, values ...string) *scalar[string] {
	v := text(to)
	v.parse = func(s string) (string, error) {
		if !slices.Contains(values, s) {
			return "", fmt.Errorf("it must be %s", strings.Join(values, " or "))
		}
		return s, nil
	}
	return v
}

func boolean(to *bool) *scalar[bool] {
	parse := func(s string) (bool, error) {
		b, err := strconv.ParseBool(s)
		if err != nil {
			return false, errors.New("it must be true or false")
		}
		return b, nil
	}
	return &scalar[bool]{to, parse, strconv.FormatBool, fileBool}
}

func unsigned[T uint | uint32 | uint64](to *T) *scalar[T] {
	parse := func(s string) (T, error) {
		n, err := strconv.ParseUint(s, 0, 64)
		if most := uint64(^T(0)); err != nil || n > most {
			return 0, fmt.Errorf("it must be a whole number from 0 to %d", most)
		}
		return T(n), nil
	}
	return &scalar[T]{to, parse, func(n T) string { return strconv.FormatUint(uint64(n), 10) }, fileNumber}
}

func signed[T int | int64](to *T) *scalar[T] {
	parse := func(s string) (T, error) {
		n, err := strconv.ParseInt(s, 0, 64)
		if err != nil || int64(T(n)) != n {
			return 0, errors.New("it must be a whole number")
		}
		return T(n), nil
	}
	return &scalar[T]{to, parse, func(n T) string { return strconv.FormatInt(int64(n), 10) }, fileNumber}
}

func duration(to *time.Duration) *scalar[time.Duration] {
	parse := func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil {
			return 0, errors.New("it must be a duration such as 300ms or 1m30s")
		}
		return d, nil
	}
	return &scalar[time.Duration]{to, parse, time.Duration.String, fileDuration}
}

// milliseconds is a duration that is written as a number of milliseconds.
func milliseconds(to *time.Duration) *scalar[time.Duration] {
	const most = math.MaxInt64 / uint64(time.Millisecond)
	parse := func(s string) (time.Duration, error) {
		n, err := strconv.ParseUint(s, 0, 64)
		if err != nil || n > most {
			return 0, errors.New("it must be a whole number of milliseconds")
		}
		return time.Duration(n) * time.Millisecond, nil
	}
	format := func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
	return &scalar[time.Duration]{to, parse, format, fileNumber}
}

// urls is a list of URLs, kept sorted and without repeats as etcd keeps them. An empty text changes nothing: a
// listener cannot be switched off by it. Config.Validate checks the URLs themselves.
func urls(to *[]string) *scalar[[]string] {
	parse := func(s string) ([]string, error) {
		if s == "" {
			return *to, nil
		}
		list := splitWords(s)
		slices.Sort(list)
		return slices.Compact(list), nil
	}
	return &scalar[[]string]{to, parse, joinWords, fileText}
}

// words is a list with commas. In the configuration file it is a list, but for two options that etcd has as text.
func words(to *[]string) *scalar[[]string] {
	parse := func(s string) ([]string, error) { return splitWords(s), nil }
	return &scalar[[]string]{to, parse, joinWords, fileList}
}

func splitWords(s string) []string {
	var list []string
	for word := range strings.SplitSeq(s, ",") {
		if word = strings.TrimSpace(word); word != "" {
			list = append(list, word)
		}
	}
	return list
}

func joinWords(list []string) string { return strings.Join(list, ",") }

// asText says that a list is text in the configuration file.
func asText[T any](v *scalar[T]) *scalar[T] {
	v.form = fileText
	return v
}

// anything takes any value, for options that are ignored. It only knows whether there was one.
type anything struct{ given bool }

func (a *anything) Set(string) error {
	a.given = true
	return nil
}

func (a *anything) String() string {
	if a.given {
		return "given"
	}
	return ""
}

func (a *anything) IsBoolFlag() bool   { return true }
func (a *anything) fileForm() fileForm { return fileText }

// featureGates are etcd's switches of features that are new. It gives those their effect that have one here.
type featureGates struct {
	text string
	on   map[string]bool // as they were set

	corruptCheck, hashCheck *bool
}

// A gate is one of etcd's features. All but those without a reason are as they are here, whatever is set.
type gate struct {
	name  string
	fixed bool   // it is on here
	why   string // it is
}

const (
	gateCorruptCheck = "InitialCorruptCheck"
	gateHashCheck    = "CompactHashCheck"
	gateLocalAddress = "SetMemberLocalAddr"
	gateAllAlpha     = "AllAlpha"
	gateAllBeta      = "AllBeta"
)

func etcdGates() []gate {
	return []gate{
		{name: gateHashCheck},
		{name: "FastLeaseKeepAlive", fixed: true, why: "renewals of leases never wait for the log"},
		{name: gateCorruptCheck},
		{name: "LeaseCheckpoint", fixed: true, why: "checkpoints of leases are always made"},
		{name: "LeaseCheckpointPersist", fixed: true, why: "checkpoints of leases are always kept"},
		{name: "PriorityRequest", why: "no request overtakes another on its way through the log"},
		{name: gateLocalAddress},
		{name: "StopGRPCServiceOnDefrag", why: "nobody has to wait for a defragmentation"},
		{name: "TxnModeWriteWithSharedBuffer", fixed: true, why: "transactions copy no buffer"},
	}
}

func gateNames() []string {
	names := []string{gateAllAlpha, gateAllBeta}
	for _, g := range etcdGates() {
		names = append(names, g.name)
	}
	return names
}

func (g *featureGates) Set(s string) error {
	on := maps.Clone(g.on)
	if on == nil {
		on = make(map[string]bool)
	}
	for _, pair := range splitWords(s) {
		name, value, ok := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		if !ok {
			return fmt.Errorf("%q must have the form name=true or name=false", pair)
		}
		if known := gateNames(); !slices.Contains(known, name) {
			return fmt.Errorf("there is no feature %q%s", name, didYouMean(name, known))
		}
		b, err := strconv.ParseBool(strings.TrimSpace(value))
		if err != nil {
			return fmt.Errorf("%s must be true or false, not %q", name, value)
		}
		on[name] = b
	}
	if on["LeaseCheckpointPersist"] && !on["LeaseCheckpoint"] && !on[gateAllAlpha] {
		return errors.New("LeaseCheckpointPersist needs LeaseCheckpoint")
	}
	g.on, g.text = on, s
	*g.corruptCheck, *g.hashCheck = g.alpha(gateCorruptCheck), g.alpha(gateHashCheck)
	return nil
}

// alpha reports whether an alpha feature is on: by its own name, or else with all of them.
func (g *featureGates) alpha(name string) bool {
	if b, set := g.on[name]; set {
		return b
	}
	return g.on[gateAllAlpha]
}

// verdict says which of the gates that were named change nothing, and refuses what is missing.
func (g *featureGates) verdict(where string) (*note, error) {
	if g.on[gateLocalAddress] {
		return nil, fmt.Errorf("%s: %s is not supported yet: connections to members leave from the address that the system chooses", where, gateLocalAddress)
	}
	var reasons []string
	for _, known := range etcdGates() {
		if on, named := g.on[known.name]; named && known.why != "" && on != known.fixed {
			reasons = append(reasons, fmt.Sprintf("%s=%t: %s", known.name, on, known.why))
		}
	}
	if reasons == nil {
		return nil, nil
	}
	return warn("setting has no effect", "setting", where, "reason", strings.Join(reasons, "; ")), nil
}

func (g *featureGates) String() string     { return g.text }
func (g *featureGates) fileForm() fileForm { return fileText }

// flagText translates a value of the configuration file, as JSON, into what the flag of the option takes. ok is false
// if there is no value, which leaves the default.
func flagText(form fileForm, raw json.RawMessage) (s string, ok bool, err error) {
	var v any
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return "", false, err
	}
	if v == nil {
		return "", false, nil
	}
	n, isNumber := v.(json.Number)
	b, isBool := v.(bool)
	s, isText := v.(string)
	list, isList := v.([]any)
	switch {
	case form == fileText && isText:
		return s, true, nil
	case form == fileText && isNumber:
		return n.String(), true, nil
	case form == fileText && isBool:
		return strconv.FormatBool(b), true, nil
	case form == fileBool && isBool:
		return strconv.FormatBool(b), true, nil
	case form == fileNumber && isNumber:
		return n.String(), true, nil
	case form == fileDuration && isNumber:
		ns, err := n.Int64()
		if err != nil {
			return "", false, errors.New("it must be a whole number of nanoseconds")
		}
		return time.Duration(ns).String(), true, nil
	case form == fileList && isList:
		texts := make([]string, len(list))
		for i, e := range list {
			if texts[i], isText = e.(string); !isText {
				return "", false, errors.New("it must be a list of texts")
			}
		}
		return joinWords(texts), true, nil
	}
	switch form {
	case fileBool:
		err = errors.New("it must be true or false")
	case fileNumber:
		err = errors.New("it must be a number")
	case fileDuration:
		err = errors.New("it must be a whole number of nanoseconds (only flags and variables take texts such as 10m)")
	case fileList:
		err = errors.New("it must be a list of texts, as in [a, b]")
	default:
		err = errors.New("it must be a text")
	}
	return "", false, err
}
