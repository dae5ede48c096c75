//! The address of a client: the other end of the connection, or the address that a trusted proxy has added.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::{Extensions, HeaderMap, HeaderName};
use ipnet::IpNet;

/// The addresses from which a request came. Each proxy adds one at the end.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// IPv6 clients get whole networks of this prefix length, so all addresses of one count as one client.
const IPV6_NETWORK_BITS: u32 = 64;

/// The address at the other end of a connection, in the extensions of its requests.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

impl Peer {
    /// The address whose connections count together; for IPv6 the first address of the /64. `None` for a trusted
    /// proxy, which has the connections of many clients.
    pub fn client(self, trusted: &[IpNet]) -> Option<IpAddr> {
        let peer = self.0.to_canonical();
        (!is_trusted(peer, trusted)).then(|| network(peer))
    }
}

/// The client's address; for IPv6 the first address of its /64. `None` without a connection, as in tests.
pub fn client_address(extensions: &Extensions, headers: &HeaderMap, trusted: &[IpNet]) -> Option<IpAddr> {
    let Peer(peer) = extensions.get()?;
    Some(network(forwarded(peer.to_canonical(), headers, trusted)))
}

fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// The nearest address that is not a trusted proxy. Addresses before it could be forged.
fn forwarded(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut nearest = peer;
    let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
    // Each address is parsed by itself, so that invalid text from the client can't hide an address that a proxy has
    // added.
    let mut addresses = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    while is_trusted(nearest, trusted) {
        let Some(next) = addresses.next().and_then(parse_address) else { break };
        nearest = next.to_canonical();
    }
    nearest
}

/// Parses an address. Some proxies add a port.
fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let without_port = || text.trim_start_matches('[').trim_end_matches(']').parse().ok();
    text.parse::<SocketAddr>().ok().map(|address| address.ip()).or_else(without_port)
}

/// An IPv6 address becomes the first address of its network.
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

    fn client(peer: &str, lines: &[&str]) -> String {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"].iter().map(|net| net.parse().unwrap()).collect();
        let value =
            |line: &&str| HeaderValue::from_bytes(&line.chars().map(|c| c as u8).collect::<Vec<_>>()).unwrap();
        let headers = lines.iter().map(|line| (X_FORWARDED_FOR, value(line))).collect();
        let mut extensions = Extensions::new();
        extensions.insert(Peer(peer.parse().unwrap()));
        client_address(&extensions, &headers, &trusted).unwrap().to_string()
    }

    #[test]
    fn only_a_trusted_proxy_can_name_the_client() {
        assert_eq!(client("192.0.2.1", &[]), "192.0.2.1");
        assert_eq!(client("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1", &["203.0.113.9, 198.51.100.7, 10.9.9.9"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1", &["203.0.113.9", "198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("::ffff:10.0.0.1", &["::ffff:198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1", &["10.0.0.2"]), "10.0.0.2");
        assert_eq!(client("10.0.0.1", &["malformed"]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["\u{ff}, 198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1", &["198.51.100.7, \u{ff}"]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["203.0.113.9, 198.51.100.7:4711"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1", &["[2001:db8:1:2::7]:4711", "10.0.0.9"]), "2001:db8:1:2::");
        assert_eq!(client("10.0.0.1", &["[2001:db8:1:2::7]"]), "2001:db8:1:2::");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn all_addresses_of_an_ipv6_network_are_one_client() {
        assert_eq!(client("2001:db8:1:2:3:4:5:6", &[]), "2001:db8:1:2::");
        assert_eq!(client("fd00::1", &["2001:db8:1:2:ffff::"]), "2001:db8:1:2::");
    }

    #[test]
    fn connections_count_for_their_network_unless_they_are_a_proxys() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        for (peer, expected) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("2001:db8:1:2:3:4:5:6", Some("2001:db8:1:2::")),
            ("10.0.0.1", None),
            ("::ffff:10.0.0.1", None),
        ] {
            let client = Peer(peer.parse().unwrap()).client(&trusted);
            assert_eq!(client.map(|address| address.to_string()).as_deref(), expected, "{peer}");
        }
    }
}
