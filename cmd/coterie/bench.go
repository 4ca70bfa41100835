package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/cheggaaa/pb/v3"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.etcd.io/etcd/client/pkg/v3/transport"

	"github.com/coteriedb/coterie/bench"
)

// benchGCPercent lets the generator's heap grow before it is collected: it is small, and the CPU that
// collections would take is missing on the server when both run on one machine. GOGC overrides it.
const benchGCPercent = 400

// benchCommand is the load generator. It talks to any server that speaks etcd's API.
func benchCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "bench",
		Short: "Put a measured load on a server that speaks etcd's API",
		Long: `Put a measured load on a server that speaks etcd's API, Coterie or any other.

A run warms up, measures for --duration or until --total requests are done, whichever comes first,
and prints the rate, the latencies, the failures by code and, for the processes named with
--server-pid, CPU time and memory. An interrupt ends it early with what it has measured so far.

Without --rate every client waits for its answer before it sends again. With --rate requests are due
at fixed times, whatever the server does, and latency counts from when a request was due.`,
		Example: `  coterie bench put --conns 100 --clients 1000 --server-pid $(pidof etcd)
  coterie bench range --consistency s --rate 5000 --duration 30s --json`,
	}
	for _, newWorkload := range []func() *benchRun{
		benchPut, benchRange, benchTxn, benchMixed, benchWatchFanout, benchWatchLatency, benchLeaseKeepAlive,
	} {
		root.AddCommand(newWorkload().command())
	}
	return root
}

// benchRun is one workload's command with the flags that every workload has.
type benchRun struct {
	name, summary string
	// load makes the workload from the flags once they are parsed.
	load func() (bench.Load, error)
	// flags adds the workload's own flags.
	flags func(*pflag.FlagSet)

	target        bench.Target
	client        string
	transport     transport.TLSInfo
	user          string
	plan          bench.Plan
	data          bench.Data
	json          bool
	plainProgress bool
}

func (b *benchRun) command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   b.name,
		Short: b.summary,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return b.run(cmd) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringSliceVar(&b.target.Endpoints, "endpoints", []string{"127.0.0.1:2379"}, "servers; connections are dealt out to them in turn")
	f.IntVar(&b.target.Conns, "conns", 10, "connections in all")
	f.IntVar(&b.plan.Clients, "clients", b.plan.Clients, "clients that share the connections")
	f.DurationVar(&b.plan.Duration, "duration", 10*time.Second, "how long to measure at most")
	f.Int64Var(&b.plan.Total, "total", 0, "how many requests to measure at most (0: as many as --duration allows)")
	f.DurationVar(&b.plan.WarmUp, "warm-up", time.Second, "the same load before the measuring")
	f.Float64Var(&b.plan.Rate, "rate", 0, "requests per second, sent when they are due (0: each client waits for its answer)")
	b.flags(f)
	f.StringVar(&b.client, "client", "grpc", "grpc: grpc-go's client, or light: one that costs this machine less, and does not connect again")
	f.IntSliceVar(&b.plan.ServerPIDs, "server-pid", nil, "process of the server on this machine, to report its CPU time and memory (repeatable)")
	f.BoolVar(&b.json, "json", false, "print the report as JSON")
	f.BoolVar(&b.plainProgress, "no-progress", false, "no progress bar, even on a terminal")
	f.StringVar(&b.transport.TrustedCAFile, "cacert", "", "verify the server's certificate with this CA bundle")
	f.StringVar(&b.transport.CertFile, "cert", "", "present this certificate to the server")
	f.StringVar(&b.transport.KeyFile, "key", "", "private key of --cert")
	f.BoolVar(&b.transport.InsecureSkipVerify, "insecure-skip-tls-verify", false, "use TLS without verifying the server's certificate")
	f.StringVar(&b.user, "user", "", "user, or user:password")
	f.StringVar(&b.target.Password, "password", "", "password of --user")
	f.DurationVar(&b.target.DialTimeout, "dial-timeout", 5*time.Second, "how long a connection may take until its first answer")
	return cmd
}

func (b *benchRun) dataFlags(f *pflag.FlagSet) {
	f.IntVar(&b.data.Keys, "key-space-size", 10_000, "how many different keys")
	f.StringVar(&b.data.Prefix, "key-prefix", "bench/", "what every key begins with")
	f.IntVar(&b.data.KeySize, "key-size", 24, "bytes of a key, its prefix included")
	f.IntVar(&b.data.ValueSize, "val-size", 256, "bytes of a value")
	f.BoolVar(&b.data.Sequential, "sequential-keys", false, "take the keys in turn, not at random")
	f.Uint64Var(&b.data.Seed, "seed", 1, "seed of the choice of keys and values")
}

func (b *benchRun) run(cmd *cobra.Command) error {
	if err := b.plan.Validate(); err != nil {
		return usageError{err}
	}
	load, err := b.load()
	if err != nil {
		return usageError{err}
	}
	if b.target.TLS, err = b.tlsConfig(); err != nil {
		return usageError{err}
	}
	switch b.client {
	case "grpc":
	case "light":
		b.target.Light = true
	default:
		return usageError{fmt.Errorf("--client %q: must be grpc or light", b.client)}
	}
	b.target.User, b.target.Password = b.credentials()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(benchGCPercent)
	}

	ctx, restore := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer restore()
	// After the first signal the default is back: a second one ends the process.
	defer context.AfterFunc(ctx, restore)()

	pool, err := bench.Dial(ctx, b.target)
	if err != nil {
		return err
	}
	defer pool.Close()

	hideProgress := b.showProgress()
	report, err := bench.Run(ctx, pool, load, b.plan)
	hideProgress()
	if err != nil {
		return err
	}
	report.Parameters = flagValues(cmd.Flags())
	if err := b.print(cmd.OutOrStdout(), report); err != nil {
		return err
	}
	return report.Err()
}

func (b *benchRun) print(w io.Writer, report *bench.Report) error {
	if !b.json {
		return report.WriteTable(w)
	}
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	return out.Encode(report)
}

// flagValues is every flag with its value, without secrets.
func flagValues(f *pflag.FlagSet) map[string]string {
	values := make(map[string]string)
	f.VisitAll(func(f *pflag.Flag) {
		if f.Name != "user" && f.Name != "password" && f.Name != "help" {
			values[f.Name] = f.Value.String()
		}
	})
	return values
}

// tlsConfig is nil when no flag asks for TLS; endpoints that say https get it all the same.
func (b *benchRun) tlsConfig() (*tls.Config, error) {
	t := b.transport
	if t.TrustedCAFile == "" && t.CertFile == "" && t.KeyFile == "" && !t.InsecureSkipVerify {
		return nil, nil
	}
	cfg, err := t.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("preparing TLS: %w", err)
	}
	return cfg, nil
}

func (b *benchRun) credentials() (user, password string) {
	if b.target.Password != "" {
		return b.user, b.target.Password
	}
	user, password, _ = strings.Cut(b.user, ":")
	return user, password
}

// showProgress draws a bar on standard error if that is a terminal, until the returned function is called.
func (b *benchRun) showProgress() (hide func()) {
	if b.plainProgress {
		return func() {}
	}
	const template = `{{string . "stage"}} {{bar . }} {{string . "done"}}`
	bar := pb.ProgressBarTemplate(template).New(0).SetWriter(os.Stderr)
	bar.Set(pb.Static, true).Start() // written below, when there is something to say
	if !bar.GetBool(pb.Terminal) {
		return func() {}
	}
	b.plan.Progress = func(p bench.Progress) {
		current, total := p.Elapsed.Milliseconds(), p.Duration.Milliseconds()
		if p.Total > 0 && float64(p.Done)/float64(p.Total) > float64(current)/float64(max(total, 1)) {
			current, total = p.Done, p.Total
		}
		bar.SetTotal(total).SetCurrent(min(current, total))
		bar.Set("stage", p.Stage)
		bar.Set("done", fmt.Sprintf("%d requests, %.1f s", p.Done, p.Elapsed.Seconds()))
		bar.Write()
	}
	const eraseLine = "\r\x1b[K"
	return func() { fmt.Fprint(os.Stderr, eraseLine) }
}

func benchPut() *benchRun {
	b := &benchRun{name: "put", summary: "Put keys", plan: bench.Plan{Clients: 100}}
	var idle int
	b.flags = func(f *pflag.FlagSet) {
		b.dataFlags(f)
		f.IntVar(&idle, "idle-watchers", 0, "so many watchers on other keys, on all connections")
	}
	b.load = func() (bench.Load, error) {
		load, err := bench.NewPut(b.data)
		if err != nil || idle == 0 {
			return load, err
		}
		return bench.NewIdleWatchers(load, idle)
	}
	return b
}

// benchReads are the flags of the workloads that read.
type benchReads struct {
	consistency string
	noFill      bool
	options     bench.RangeOptions
}

func (r *benchReads) flags(f *pflag.FlagSet) {
	f.StringVar(&r.consistency, "consistency", "l", "l: linearizable reads, s: serializable reads")
	f.IntVar(&r.options.Span, "span", 1, "how many consecutive keys a range covers")
	f.Int64Var(&r.options.Limit, "limit", 0, "limit of a range (0: none)")
	f.BoolVar(&r.options.CountOnly, "count-only", false, "ask for the count alone")
	f.BoolVar(&r.options.KeysOnly, "keys-only", false, "ask for keys without values")
	fillFlag(f, &r.noFill)
}

func fillFlag(f *pflag.FlagSet, noFill *bool) {
	f.BoolVar(noFill, "no-fill", false, "the key space is filled already, by a run with the same keys")
}

func (r *benchReads) rangeOptions() (bench.RangeOptions, error) {
	o := r.options
	switch r.consistency {
	case "l":
	case "s":
		o.Serializable = true
	default:
		return o, fmt.Errorf("--consistency %q: must be l or s", r.consistency)
	}
	return o, nil
}

func benchRange() *benchRun {
	b := &benchRun{name: "range", summary: "Read keys, one or many at a time", plan: bench.Plan{Clients: 100}}
	var reads benchReads
	b.flags = func(f *pflag.FlagSet) {
		b.dataFlags(f)
		reads.flags(f)
	}
	b.load = func() (bench.Load, error) {
		o, err := reads.rangeOptions()
		if err != nil {
			return nil, err
		}
		return bench.NewRange(bench.KV{Data: b.data, NoFill: reads.noFill}, o)
	}
	return b
}

func benchTxn() *benchRun {
	b := &benchRun{name: "txn", summary: "Compare a key and put it in one transaction", plan: bench.Plan{Clients: 100}}
	var puts int
	var noFill bool
	b.flags = func(f *pflag.FlagSet) {
		b.dataFlags(f)
		f.IntVar(&puts, "puts", 1, "keys that a transaction puts")
		fillFlag(f, &noFill)
	}
	b.load = func() (bench.Load, error) {
		return bench.NewTxn(bench.KV{Data: b.data, NoFill: noFill}, puts)
	}
	return b
}

func benchMixed() *benchRun {
	b := &benchRun{name: "mixed", summary: "Read and put keys", plan: bench.Plan{Clients: 100}}
	var reads benchReads
	var ratio float64
	b.flags = func(f *pflag.FlagSet) {
		b.dataFlags(f)
		f.Float64Var(&ratio, "read-ratio", 0.8, "share of the requests that read, from 0 to 1")
		reads.flags(f)
	}
	b.load = func() (bench.Load, error) {
		o, err := reads.rangeOptions()
		if err != nil {
			return nil, err
		}
		return bench.NewMixed(bench.KV{Data: b.data, NoFill: reads.noFill}, o, ratio)
	}
	return b
}

func benchWatchFanout() *benchRun {
	b := &benchRun{name: "watch-fanout", summary: "Put keys that many watchers receive", plan: bench.Plan{Clients: 1}}
	var o bench.FanoutOptions
	b.flags = func(f *pflag.FlagSet) {
		b.dataFlags(f)
		f.IntVar(&o.Watchers, "watchers", 100, "watchers in all, each on all keys with the prefix")
		f.IntVar(&o.Streams, "streams", 0, "watch streams that they share (0: one on each connection)")
		f.BoolVar(&o.Await, "await", false, "a put ends when all watchers have its event")
	}
	b.load = func() (bench.Load, error) { return bench.NewWatchFanout(b.data, o) }
	return b
}

func benchWatchLatency() *benchRun {
	b := &benchRun{name: "watch-latency", summary: "Put a key and wait for its event", plan: bench.Plan{Clients: 10}}
	b.flags = b.dataFlags
	b.load = func() (bench.Load, error) {
		return bench.NewWatchLatency(b.data, b.plan.Clients)
	}
	return b
}

func benchLeaseKeepAlive() *benchRun {
	b := &benchRun{name: "lease-keepalive", summary: "Keep leases alive", plan: bench.Plan{Clients: 100}}
	var o bench.LeaseOptions
	b.flags = func(f *pflag.FlagSet) {
		f.IntVar(&o.PerClient, "leases", 1, "leases of each client")
		f.DurationVar(&o.TTL, "ttl", time.Minute, "time to live of a lease")
	}
	b.load = func() (bench.Load, error) { return bench.NewLeaseKeepAlive(b.plan.Clients, o) }
	return b
}
