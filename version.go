package coterie

// Version is Coterie's own version. The version of etcd's API that it implements is that of go.etcd.io/etcd/api/v3.
const Version = "0.1.0-dev"
