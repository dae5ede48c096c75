//! Where a request comes from: the connection's other end, or whom a trusted proxy names.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::{Extensions, HeaderMap, HeaderName};
use ipnet::IpNet;

/// What proxies add to the addresses through which a request came, the nearest last.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Whoever has one address of such a network has all of them.
const IPV6_NETWORK_BITS: u32 = 64;

/// The other end of a connection, in the extensions of its requests.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// The address that a caller is known by; none in tests without a connection.
pub fn address(extensions: &Extensions, headers: &HeaderMap, trusted: &[IpNet]) -> Option<IpAddr> {
    let Peer(peer) = extensions.get()?;
    Some(network(forwarded(peer.to_canonical(), headers, trusted)))
}

/// The nearest address that is no trusted proxy's: what lies behind it anyone could have written.
fn forwarded(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    let mut nearest = peer;
    let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
    // Each by itself: what a caller has written further to the left must not hide what a proxy has added.
    let mut request_context = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    while is_trusted(nearest) {
        let Some(next) = request_context.next().and_then(parse) else { break };
        nearest = next.to_canonical();
    }
    nearest
}

/// An address; some proxies add a port.
fn parse(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let alone = || text.trim_start_matches('[').trim_end_matches(']').parse().ok();
    text.parse::<SocketAddr>().ok().map(|address| address.ip()).or_else(alone)
}

/// The first address of an IPv6 address's network.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let mask = u128::MAX << (Ipv6Addr::BITS - IPV6_NETWORK_BITS);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn of(peer: &str, lines: &[&str]) -> String {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"].iter().map(|net| net.parse().unwrap()).collect();
        let value =
            |line: &&str| HeaderValue::from_bytes(&line.chars().map(|c| c as u8).collect::<Vec<_>>()).unwrap();
        let headers = lines.iter().map(|line| (X_FORWARDED_FOR, value(line))).collect();
        let mut extensions = Extensions::new();
        extensions.insert(Peer(peer.parse().unwrap()));
        address(&extensions, &headers, &trusted).unwrap().to_string()
    }

    #[test]
    fn only_trusted_proxies_say_who_is_behind_them() {
        assert_eq!(of("192.0.2.1", &[]), "192.0.2.1");
        assert_eq!(of("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(of("10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(of("10.0.0.1", &["203.0.113.9, 198.51.100.7, 10.9.9.9"]), "198.51.100.7");
        assert_eq!(of("10.0.0.1", &["203.0.113.9", "198.51.100.7"]), "198.51.100.7");
        assert_eq!(of("::ffff:10.0.0.1", &["::ffff:198.51.100.7"]), "198.51.100.7");
        assert_eq!(of("10.0.0.1", &["10.0.0.2"]), "10.0.0.2");
        assert_eq!(of("10.0.0.1", &["junk"]), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &["\u{ff}, 198.51.100.7"]), "198.51.100.7");
        assert_eq!(of("10.0.0.1", &["198.51.100.7, \u{ff}"]), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &["203.0.113.9, 198.51.100.7:4711"]), "198.51.100.7");
        assert_eq!(of("10.0.0.1", &["[2001:db8:1:2::7]:4711", "10.0.0.9"]), "2001:db8:1:2::");
        assert_eq!(of("10.0.0.1", &["[2001:db8:1:2::7]"]), "2001:db8:1:2::");
        assert_eq!(of("10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn ipv6_is_told_apart_by_networks() {
        assert_eq!(of("2001:db8:1:2:3:4:5:6", &[]), "2001:db8:1:2::");
        assert_eq!(of("fd00::1", &["2001:db8:1:2:ffff::"]), "2001:db8:1:2::");
    }
}
