package ctl

import (
	"fmt"
	"regexp"
	"strings"
)

// names replaces what two servers cannot have in common. A lease keeps its name throughout a transcript.
type names struct {
	endpoint string // of the single server
	subnet   string // of a cluster's members: the beginning of their addresses
	leases   map[string]string
}

func newNames(endpoint string) *names {
	return &names{endpoint: endpoint, leases: map[string]string{}}
}

// rule replaces what follows a prefix that stays.
type rule struct {
	pattern *regexp.Regexp
	to      string
}

// rules name fields as etcdctl's output formats write them: simple, fields, JSON, and protobuf text.
var rules = []rule{
	{regexp.MustCompile(`("(?:cluster_id|member_id|raft_term|raftTerm|leader|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse|dbSizeQuota)":)\d+`), `${1}"N"`},
	{regexp.MustCompile(`("(?:ClusterID|MemberID|RaftTerm|Leader|RaftIndex|RaftAppliedIndex|DBSize|DBSizeInUse|DBSizeQuota)" : ).*`), `${1}N`},
	{regexp.MustCompile(`((?:cluster_id|member_id|raft_term): )\d+`), `${1}N`},
	{regexp.MustCompile(`\b[0-9.]+[µm]s\b`), `T`},
	{regexp.MustCompile(`"took":"[^"]*"`), `"took":"T"`},
	{regexp.MustCompile(`\b[0-9.]+ [kM]?B\b`), `SIZE`},
	{regexp.MustCompile(`\b\d+%`), `P%`},
	{regexp.MustCompile(`((?:true|false)(?:, |│))\d+(, |│)\d+(, |│)\d+(, |│)`), `${1}N${2}N${3}N${4}`},
	{regexp.MustCompile(`\b(Member|cluster) +`), `${1} `}, // a short id is filled up with blanks
	{regexp.MustCompile(`remaining\([0-9]+s\)`), `remaining(T)`},
	{regexp.MustCompile(`("ttl":)\d+(,"granted-ttl":\d{3})`), `${1}"T"${2}`},
	{regexp.MustCompile(`("TTL" : )9\d\d?$`), `${1}T`},
	{regexp.MustCompile(`"ts":"[^"]*"`), `"ts":"T"`},
	{regexp.MustCompile(`"caller":"[^"]*"`), `"caller":"C"`},
	{regexp.MustCompile(`0x[0-9a-f]{6,}`), `PTR`},
	{regexp.MustCompile(`retrying of unary invoker failed.*`), `retrying of unary invoker failed`},
}

var (
	leaseHex     = regexp.MustCompile(`\b[0-9a-f]{13,16}\b`)
	leaseDecimal = regexp.MustCompile(`("(?:ID|lease|id)":|"(?:ID|Lease|PrevLease)" : |lease: )(\d{9,})`)
	tableBorder  = regexp.MustCompile(`─{2,}`)
	tableBlank   = regexp.MustCompile(` *│ *`)
)

func (n *names) replace(text string) string {
	if n.subnet != "" {
		text = strings.ReplaceAll(text, n.subnet, "127.0.0.")
	} else {
		text = strings.ReplaceAll(text, n.endpoint, "ENDPOINT")
		text = strings.ReplaceAll(text, strings.TrimPrefix(n.endpoint, "http://"), "ENDPOINT")
	}
	text = tableBorder.ReplaceAllString(text, "─")
	text = tableBlank.ReplaceAllString(text, "│")
	for _, r := range rules {
		text = r.pattern.ReplaceAllString(text, r.to)
	}
	text = leaseDecimal.ReplaceAllStringFunc(text, func(s string) string {
		parts := leaseDecimal.FindStringSubmatch(s)
		var id uint64
		fmt.Sscan(parts[2], &id)
		return parts[1] + n.id(fmt.Sprintf("%x", id))
	})
	return leaseHex.ReplaceAllStringFunc(text, n.id)
}

// id names a 64-bit id, of a lease or a member, by the order in which ids appear.
func (n *names) id(hex string) string {
	hex = strings.TrimLeft(hex, "0")
	if n.leases[hex] == "" {
		n.leases[hex] = fmt.Sprintf("ID%d", len(n.leases)+1)
	}
	return n.leases[hex]
}
