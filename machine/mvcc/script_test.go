package mvcc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/coteriedb/coterie/machine/lease"
)

// TestScripts runs testdata. A script is a list of directives:
//
//	apply    commands, one per line, applied as one batch; prints the answers
//	         and then the events
//	read     gets and read-only transactions, one per line
//	stream   one get, streamed
//	events from= to= [max=] [key=]
//	prev key rev                  the value before an event
//	hash [rev=]
//	history                       all versions, as they are in the engine
//	state                         revisions, leases; checks the size in use
//	reopen
//
// Commands:
//
//	put KEY VALUE [lease=N] [prev_kv] [ignore_value] [ignore_lease]
//	del KEY [END] [prev_kv]
//	get KEY [END] [rev=N] [limit=N] [sort=TARGET/ORDER] [keys_only] ...
//	txn, with lines if/then/else up to end:
//	  if TARGET KEY [END] (=|!=|<|>) OPERAND
//	  then COMMAND, else COMMAND
//	compact REV [wait]
//	delkeys KEY...
//
// Words may be quoted as in Go. A pair prints as key=value c<create> m<mod>
// v<version> and l<lease>, if any.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/script", func(t *testing.T, path string) {
		h := newHarness(t, 1, 2, 3)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			out := &strings.Builder{}
			sc := &script{t: t, h: h, d: d, out: out, lines: bufio.NewScanner(strings.NewReader(d.Input))}
			sc.run()
			return out.String()
		})
	})
}

type script struct {
	t     *testing.T
	h     *harness
	d     *datadriven.TestData
	out   *strings.Builder
	lines *bufio.Scanner
}

func (sc *script) run() {
	switch sc.d.Cmd {
	case "apply":
		sc.apply()
	case "read":
		for w := sc.next(); w != nil; w = sc.next() {
			sc.read(w)
		}
	case "stream":
		sc.stream()
	case "events":
		sc.events()
	case "prev":
		sc.prev()
	case "hash":
		sum, rev, compact, err := sc.h.s.HashKV(context.Background(), sc.int("rev", 0))
		if err != nil {
			sc.printf("%s\n", errName(err))
			return
		}
		sc.printf("%08x rev=%d compact=%d\n", sum, rev, compact)
	case "history":
		sc.history()
	case "state":
		sc.state()
	case "reopen":
		sc.h.reopen()
	default:
		sc.d.Fatalf(sc.t, "unknown directive %s", sc.d.Cmd)
	}
}

func (sc *script) printf(format string, args ...any) { fmt.Fprintf(sc.out, format, args...) }

func (sc *script) int(arg string, absent int64) int64 {
	if sc.d.HasArg(arg) {
		var n int64
		sc.d.ScanArgs(sc.t, arg, &n)
		return n
	}
	return absent
}

// next returns the words of the next line, or nil.
func (sc *script) next() []string {
	for sc.lines.Scan() {
		if w := sc.words(sc.lines.Text()); len(w) > 0 {
			return w
		}
	}
	return nil
}

func (sc *script) words(line string) []string {
	var out []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		if line[0] == '"' {
			q, err := strconv.QuotedPrefix(line)
			if err != nil {
				sc.d.Fatalf(sc.t, "%s: %v", line, err)
			}
			w, _ := strconv.Unquote(q)
			out, line = append(out, w), line[len(q):]
			continue
		}
		w, rest, _ := strings.Cut(line, " ")
		out, line = append(out, w), rest
	}
	return out
}

func (sc *script) apply() {
	var waits []<-chan struct{}
	evs := sc.h.apply(func() {
		for w := sc.next(); w != nil; w = sc.next() {
			if done := sc.command(w); done != nil {
				waits = append(waits, done)
			}
		}
	})
	for _, done := range waits {
		sc.h.wait(done)
	}
	for _, r := range evs {
		sc.printf("rev %d:", r.Revision)
		sc.printf("%s\n", eventList(r.Events))
	}
}

func eventList(evs []*mvccpb.Event) string {
	var b strings.Builder
	for _, e := range evs {
		fmt.Fprintf(&b, " %s(%s)", e.Type, pairString(e.Kv))
	}
	return b.String()
}

// command applies one command and returns what is to be waited for.
func (sc *script) command(w []string) <-chan struct{} {
	s := sc.h.s
	switch w[0] {
	case "put":
		resp, err := s.Put(sc.putRequest(w[1:]))
		sc.answer(resp, err)
	case "del":
		resp, err := s.DeleteRange(sc.delRequest(w[1:]))
		sc.answer(resp, err)
	case "txn":
		resp, err := s.Txn(sc.txnRequest())
		sc.answer(resp, err)
	case "delkeys":
		sc.printf("delkeys rev=%d\n", s.DeleteKeys(w[1:]))
	case "compact":
		rev, _ := strconv.ParseInt(w[1], 10, 64)
		done, err := s.Compact(rev)
		sc.printf("compact %s\n", errName(err))
		if len(w) > 2 {
			return done
		}
	default:
		sc.d.Fatalf(sc.t, "unknown command %s", w[0])
	}
	return nil
}

func (sc *script) read(w []string) {
	ctx := context.Background()
	if w[0] == "txn" {
		r := sc.txnRequest()
		if !IsReadOnly(r) {
			sc.d.Fatalf(sc.t, "transaction is not read-only")
		}
		resp, err := sc.h.s.ReadTxn(ctx, r)
		sc.answer(resp, err)
		return
	}
	resp, err := sc.h.s.Range(ctx, sc.getRequest(w[1:]))
	sc.answer(resp, err)
}

func (sc *script) stream() {
	err := sc.h.s.RangeStream(context.Background(), sc.getRequest(sc.next()[1:]), func(r *pb.RangeStreamResponse) error {
		rr := r.RangeResponse
		var keys []string
		for _, kv := range rr.Kvs {
			keys = append(keys, string(kv.Key))
		}
		sc.printf("chunk %s", strings.Join(keys, ","))
		if rr.Header != nil {
			sc.printf(" rev=%d count=%d more=%t", rr.Header.Revision, rr.Count, rr.More)
		}
		sc.printf("\n")
		return nil
	})
	if err != nil {
		sc.printf("%s\n", errName(err))
	}
}

func (sc *script) events() {
	match := func([]byte) bool { return true }
	if sc.d.HasArg("key") {
		var want string
		sc.d.ScanArgs(sc.t, "key", &want)
		match = func(k []byte) bool { return string(k) == want }
	}
	evs, next, err := sc.h.s.ReadEvents(sc.int("from", 0), sc.int("to", 1<<40), match, int(sc.int("max", 1<<20)))
	for _, r := range evs {
		sc.printf("rev %d:%s\n", r.Revision, eventList(r.Events))
	}
	sc.printf("next=%d %s\n", next, errName(err))
}

func (sc *script) prev() {
	rev, _ := strconv.ParseInt(sc.d.CmdArgs[1].Key, 10, 64)
	kv, err := sc.h.s.PrevKV(&mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(sc.d.CmdArgs[0].Key), ModRevision: rev}})
	must(sc.t, err)
	if kv == nil {
		sc.printf("none\n")
		return
	}
	sc.printf("%s\n", pairString(kv))
}

func (sc *script) history() {
	snap := sc.h.eng.NewSnapshot()
	err := sc.h.s.ForEachRevision(context.Background(), snap, func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error {
		if tombstone {
			sc.printf("%d.%d deleted %s\n", main, sub, kv.Key)
			return nil
		}
		sc.printf("%d.%d %s\n", main, sub, pairString(kv))
		return nil
	})
	scheduled, finished, err2 := sc.h.s.Compactions(snap)
	sc.printf("scheduled=%d finished=%d\n", scheduled, finished)
	if err := errors.Join(err, err2, snap.Close()); err != nil {
		sc.t.Fatal(err)
	}
}

func (sc *script) state() {
	sc.h.checkSize()
	sc.printf("rev=%d compact=%d keys=%d\n", sc.h.s.Revision(), sc.h.s.CompactRevision(), sc.h.s.view.Load().index.size)
	var ids []int
	for id := range sc.h.leases.keys {
		ids = append(ids, int(id))
	}
	sort.Ints(ids)
	for _, id := range ids {
		if keys := sc.h.leases.keys[int64(id)]; len(keys) > 0 {
			sc.printf("lease %d:", id)
			for _, k := range keys {
				sc.printf(" %s", word([]byte(k)))
			}
			sc.printf("\n")
		}
	}
}

// options splits words into plain ones and name=value or known flags.
func options(w []string) (plain []string, opt map[string]string) {
	opt = make(map[string]string)
	for _, s := range w {
		name, value, ok := strings.Cut(s, "=")
		switch {
		case ok && optionNames[name]:
			opt[name] = value
		case optionNames[s]:
			opt[s] = "true"
		default:
			plain = append(plain, s)
		}
	}
	return plain, opt
}

var optionNames = map[string]bool{
	"lease": true, "prev_kv": true, "ignore_value": true, "ignore_lease": true,
	"rev": true, "limit": true, "sort": true, "keys_only": true, "count_only": true,
	"min_mod": true, "max_mod": true, "min_create": true, "max_create": true,
}

func num(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

func (sc *script) putRequest(w []string) *pb.PutRequest {
	plain, opt := options(w)
	r := &pb.PutRequest{
		Key: []byte(plain[0]), Lease: num(opt["lease"]), PrevKv: opt["prev_kv"] != "",
		IgnoreValue: opt["ignore_value"] != "", IgnoreLease: opt["ignore_lease"] != "",
	}
	if len(plain) > 1 {
		r.Value = []byte(plain[1])
	}
	return r
}

func (sc *script) delRequest(w []string) *pb.DeleteRangeRequest {
	plain, opt := options(w)
	r := &pb.DeleteRangeRequest{Key: []byte(plain[0]), PrevKv: opt["prev_kv"] != ""}
	if len(plain) > 1 {
		r.RangeEnd = []byte(plain[1])
	}
	return r
}

func (sc *script) getRequest(w []string) *pb.RangeRequest {
	plain, opt := options(w)
	r := &pb.RangeRequest{
		Key: []byte(plain[0]), Revision: num(opt["rev"]), Limit: num(opt["limit"]),
		KeysOnly: opt["keys_only"] != "", CountOnly: opt["count_only"] != "",
		MinModRevision: num(opt["min_mod"]), MaxModRevision: num(opt["max_mod"]),
		MinCreateRevision: num(opt["min_create"]), MaxCreateRevision: num(opt["max_create"]),
	}
	if len(plain) > 1 {
		r.RangeEnd = []byte(plain[1])
	}
	if target, order, ok := strings.Cut(opt["sort"], "/"); ok {
		r.SortTarget = pb.RangeRequest_SortTarget(pb.RangeRequest_SortTarget_value[target])
		r.SortOrder = pb.RangeRequest_SortOrder(pb.RangeRequest_SortOrder_value[order])
	}
	return r
}

// txnRequest reads a transaction up to its end.
func (sc *script) txnRequest() *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for w := sc.next(); w != nil; w = sc.next() {
		switch w[0] {
		case "end":
			return r
		case "if":
			r.Compare = append(r.Compare, sc.compare(w[1:]))
		case "then":
			r.Success = append(r.Success, sc.op(w[1:]))
		case "else":
			r.Failure = append(r.Failure, sc.op(w[1:]))
		default:
			sc.d.Fatalf(sc.t, "unknown part of a transaction: %s", w[0])
		}
	}
	return r
}

func (sc *script) op(w []string) *pb.RequestOp {
	switch w[0] {
	case "put":
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: sc.putRequest(w[1:])}}
	case "del":
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: sc.delRequest(w[1:])}}
	case "get":
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: sc.getRequest(w[1:])}}
	case "txn":
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: sc.txnRequest()}}
	}
	sc.d.Fatalf(sc.t, "unknown operation %s", w[0])
	return nil
}

func (sc *script) compare(w []string) *pb.Compare {
	c := &pb.Compare{Key: []byte(w[1])}
	if len(w) == 5 {
		c.RangeEnd = []byte(w[2])
	}
	c.Result = map[string]pb.Compare_CompareResult{
		"=": pb.Compare_EQUAL, "!=": pb.Compare_NOT_EQUAL, "<": pb.Compare_LESS, ">": pb.Compare_GREATER,
	}[w[len(w)-2]]
	operand := w[len(w)-1]
	n := num(operand)
	switch w[0] {
	case "value":
		c.Target, c.TargetUnion = pb.Compare_VALUE, &pb.Compare_Value{Value: []byte(operand)}
	case "version":
		c.Target, c.TargetUnion = pb.Compare_VERSION, &pb.Compare_Version{Version: n}
	case "create":
		c.Target, c.TargetUnion = pb.Compare_CREATE, &pb.Compare_CreateRevision{CreateRevision: n}
	case "mod":
		c.Target, c.TargetUnion = pb.Compare_MOD, &pb.Compare_ModRevision{ModRevision: n}
	case "lease":
		c.Target, c.TargetUnion = pb.Compare_LEASE, &pb.Compare_Lease{Lease: n}
	}
	return c
}

// answer prints a response or an error.
func (sc *script) answer(resp any, err error) {
	if err != nil {
		sc.printf("%s\n", errName(err))
		return
	}
	sc.response(resp, "")
}

func (sc *script) response(resp any, indent string) {
	switch r := resp.(type) {
	case *pb.PutResponse:
		sc.printf("%sput rev=%d", indent, r.Header.Revision)
		if r.PrevKv != nil {
			sc.printf(" prev=(%s)", pairString(r.PrevKv))
		}
	case *pb.DeleteRangeResponse:
		sc.printf("%sdel rev=%d deleted=%d%s", indent, r.Header.Revision, r.Deleted, pairList(r.PrevKvs))
	case *pb.RangeResponse:
		sc.printf("%sget rev=%d count=%d", indent, r.Header.Revision, r.Count)
		if r.More {
			sc.printf(" more")
		}
		sc.printf("%s", pairList(r.Kvs))
	case *pb.TxnResponse:
		sc.printf("%stxn rev=%d succeeded=%t\n", indent, r.Header.Revision, r.Succeeded)
		for _, op := range r.Responses {
			switch op := op.Response.(type) {
			case *pb.ResponseOp_ResponsePut:
				sc.response(op.ResponsePut, indent+"  ")
			case *pb.ResponseOp_ResponseDeleteRange:
				sc.response(op.ResponseDeleteRange, indent+"  ")
			case *pb.ResponseOp_ResponseRange:
				sc.response(op.ResponseRange, indent+"  ")
			case *pb.ResponseOp_ResponseTxn:
				sc.response(op.ResponseTxn, indent+"  ")
			}
		}
		return
	}
	sc.printf("\n")
}

func pairList(kvs []*mvccpb.KeyValue) string {
	var b strings.Builder
	for _, kv := range kvs {
		fmt.Fprintf(&b, " (%s)", pairString(kv))
	}
	return b.String()
}

func pairString(kv *mvccpb.KeyValue) string {
	s := fmt.Sprintf("%s=%s c%d m%d v%d", word(kv.Key), word(kv.Value), kv.CreateRevision, kv.ModRevision, kv.Version)
	if kv.Lease != 0 {
		s += fmt.Sprintf(" l%d", kv.Lease)
	}
	return s
}

func word(b []byte) string {
	q := strconv.Quote(string(b))
	if q == `"`+string(b)+`"` {
		return string(b)
	}
	return q
}

func errName(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrCompacted):
		return "error: compacted"
	case errors.Is(err, ErrFutureRev):
		return "error: future revision"
	case errors.Is(err, ErrKeyNotFound):
		return "error: key not found"
	case errors.Is(err, lease.ErrNotFound):
		return "error: lease not found"
	}
	return "error: " + err.Error()
}
