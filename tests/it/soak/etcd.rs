//! What is done to etcd, to what stands in it, and to the ways that lead there.

use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::time;

use super::PREFIX;
use super::journal::Journal;
use crate::support::etcd::Cluster;
use crate::support::proxy::Proxy;

/// Disturbs etcd and what stands in it until `end`.
pub(super) async fn disturb_etcd(
    mut rng: Rng,
    cluster: &Cluster,
    proxies: &[Vec<Proxy>],
    addresses: &[String],
    journal: &Journal,
    end: Instant,
) {
    while Instant::now() < end {
        time::sleep(Duration::from_millis(rng.u64(500..4_000))).await;
        let (index, lasts) = (rng.usize(..3), Duration::from_millis(rng.u64(500..12_000)));
        let (member, address) = (cluster.member(index), &addresses[rng.usize(..addresses.len())]);
        let key = format!("{PREFIX}{address}");
        match rng.u8(..8) {
            0 => {
                journal.note(format!("member {index} is frozen for {lasts:?}"));
                member.freeze();
                time::sleep(lasts).await;
                member.resume();
            }
            1 => {
                journal.note(format!("member {index} is killed for {lasts:?}"));
                member.kill();
                time::sleep(lasts).await;
                member.restart().await;
            }
            2 => {
                journal.note(format!("all members are frozen for {lasts:?}"));
                (0..3).for_each(|index| cluster.member(index).freeze());
                time::sleep(lasts).await;
                (0..3).for_each(|index| cluster.member(index).resume());
            }
            3 => {
                journal.note(format!("all members are killed for {lasts:?}"));
                (0..3).for_each(|index| cluster.member(index).kill());
                time::sleep(lasts).await;
                tokio::join!(cluster.member(0).restart(), cluster.member(1).restart(), cluster.member(2).restart());
            }
            4 => {
                let client = rng.usize(..proxies.len());
                journal.note(format!("client {client} finds a black hole for {lasts:?}"));
                proxies[client].iter().for_each(Proxy::black_hole);
                time::sleep(lasts).await;
                proxies[client].iter().for_each(Proxy::forward);
            }
            5 => {
                let client = rng.usize(..proxies.len());
                journal.note(format!("client {client} has no connection for {lasts:?}, and etcd compacts"));
                proxies[client].iter().for_each(Proxy::reset);
                cluster.leader().await;
                member.compact().await;
                time::sleep(lasts).await;
                proxies[client].iter().for_each(Proxy::forward);
            }
            6 => {
                journal.note(format!("the key of {address} is deleted"));
                cluster.leader().await;
                member.delete(key).await;
            }
            _ => {
                journal.note(format!("the key of {address} is overwritten"));
                cluster.leader().await;
                member.put(key, "nothing that can be read").await;
            }
        }
        cluster.leader().await;
    }
}
