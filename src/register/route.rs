//! The address that this host has on its way to another one: what others reach it at, as far as a host can know by
//! itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The address on the way to etcd, or else to wherever the default route leads; over IPv6 if that is wanted and there
/// is nothing else. The system's routes tell, and nothing is sent.
pub(super) fn source(etcd: Option<IpAddr>, takes_v6: bool) -> Option<IpAddr> {
    let anywhere = [IpAddr::V4(SOMEWHERE_V4), IpAddr::V6(SOMEWHERE_V6)];
    let targets = etcd.filter(|ip| !ip.is_loopback()).into_iter().chain(anywhere);
    let mut sources = targets.filter(|target| takes_v6 || target.is_ipv4()).filter_map(towards);
    sources.find(|source| !source.is_loopback() && !source.is_unspecified())
}

fn towards(target: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // It sets the peer, and asks the routes for the way to it.
    socket.connect(SocketAddr::new(target, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Addresses of documentation, which belong to no host: only a default route leads to them.
const SOMEWHERE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SOMEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_this_host_itself_is_the_loopback_and_counts_for_nothing() {
        let here = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert_eq!(towards(here), Some(here), "a connected socket tells");
        // Whether there is another way depends on the host.
        let found = source(Some(here), true);
        assert!(found.is_none_or(|ip| !ip.is_loopback() && !ip.is_unspecified()), "{found:?}");
        assert_eq!(source(Some(here), false), source(None, false), "an etcd on the loopback tells nothing");
    }
}
