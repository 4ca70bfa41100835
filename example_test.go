package coterie_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coteriedb/coterie"
)

// A member inside a program, and a client of it.
func Example() {
	dir, err := os.MkdirTemp("", "coterie")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	config := coterie.DefaultConfig()
	config.DataDir = filepath.Join(dir, "data")
	config.ListenClientURLs = []string{"unix://" + filepath.Join(dir, "client")}
	config.ListenPeerURLs = []string{"unix://" + filepath.Join(dir, "peer")}
	node, err := coterie.Open(ctx, config) // returns when it serves
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()

	client, err := clientv3.New(clientv3.Config{Endpoints: config.ListenClientURLs})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Put(ctx, "greeting", "hello"); err != nil {
		log.Fatal(err)
	}
	got, err := client.Get(ctx, "greeting")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s at revision %d\n", got.Kvs[0].Value, got.Kvs[0].ModRevision)
	// Output: hello at revision 2
}
