package main

import (
	"context"
	"errors"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
)

// watch prints each update of the service's endpoints; those that are there already come first.
//
// Events: add, with key, address and metadata; delete, with the key.
func watch(running context.Context, etcd *clientv3.Client, options options) error {
	manager, err := endpoints.NewManager(etcd, options.service)
	if err != nil {
		return err
	}
	updates, err := manager.NewWatchChannel(running)
	if err != nil {
		return err
	}
	for batch := range updates {
		for _, update := range batch {
			switch update.Op {
			case endpoints.Add:
				endpoint := update.Endpoint
				line{"event": "add", "key": update.Key, "address": endpoint.Addr, "metadata": endpoint.Metadata}.print()
			case endpoints.Delete:
				line{"event": "delete", "key": update.Key}.print()
			}
		}
	}
	if running.Err() == nil {
		return errors.New("the watch has ended")
	}
	return nil
}
