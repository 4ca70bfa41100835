package peer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
)

// FetchedMember is a member as a running cluster tells of it.
type FetchedMember struct {
	ID         uint64   `json:"id"`
	PeerURLs   []string `json:"peerURLs"`
	IsLearner  bool     `json:"isLearner"`
	Name       string   `json:"name"`
	ClientURLs []string `json:"clientURLs"`
}

// maxMembers bounds the list of members in bytes.
const maxMembers = 1 << 20

// Fetch asks the peer URLs of a running cluster, one after the other, who its
// members are. One answer is enough.
func Fetch(ctx context.Context, urls []string, dialTLS func() (*tls.Config, error)) (clusterID uint64, members []FetchedMember, err error) {
	d := dialer{dialTLS, connectTimeout, DefaultReadTimeout, DefaultWriteTimeout}
	client := d.client(ctx)
	defer client.CloseIdleConnections()
	var errs []error
	for _, raw := range urls {
		clusterID, members, err = fetch(ctx, client, raw)
		if err == nil {
			return clusterID, members, nil
		}
		errs = append(errs, fmt.Errorf("ask %s for the members: %w", raw, err))
	}
	if len(errs) == 0 {
		errs = append(errs, errors.New("no peer URL to ask for the members"))
	}
	return 0, nil, errors.Join(errs...)
}

func fetch(ctx context.Context, client *http.Transport, raw string) (uint64, []FetchedMember, error) {
	e, err := parseEndpoint(raw)
	if err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, DefaultReadTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url("/members").String(), nil)
	if err != nil {
		return 0, nil, err
	}
	res, err := client.RoundTrip(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		no, _ := refusedBy(res, 0)
		return 0, nil, no
	}
	body, err := readBounded(res.Body, maxMembers)
	if err != nil {
		return 0, nil, err
	}
	return decodeMembers(res.Header.Get("X-Etcd-Cluster-ID"), body)
}

func decodeMembers(cluster string, body []byte) (uint64, []FetchedMember, error) {
	id, err := strconv.ParseUint(cluster, 16, 64)
	if err != nil {
		return 0, nil, fmt.Errorf("the answer names no cluster: X-Etcd-Cluster-ID is %q", truncate(cluster, maxHeaderText))
	}
	var members []FetchedMember
	if err := json.Unmarshal(body, &members); err != nil {
		return 0, nil, fmt.Errorf("decode the members: %w", err)
	}
	if len(members) == 0 {
		return 0, nil, errors.New("the answer names no members")
	}
	return id, members, nil
}
