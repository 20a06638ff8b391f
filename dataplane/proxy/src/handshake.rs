//! The common case of SOCKS5's handshake (RFC 1928, RFC 1929): no method or a user name, then CONNECT to a name of
//! plain letters or to an address. Pure. Whatever is unusual is left to Python's machines (`overlay/socks`), which
//! then see the same bytes from the first one on; what is answered here is what they would have answered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const VERSION: u8 = 5;
const AUTH_VERSION: u8 = 1;
const NO_AUTHENTICATION: u8 = 0;
const USER_PASSWORD: u8 = 2;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;
/// The longest name DNS can carry, in its text form.
const MAX_NAME: usize = 253;

/// A request that succeeded, bound to no address worth telling.
pub const SUCCEEDED: [u8; 10] = [VERSION, 0, 0, IPV4, 0, 0, 0, 0, 0, 0];

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Host {
    Address(IpAddr),
    /// In lower case, without its last dot.
    Name(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Length of the user name (2 bytes), user name, password; empty when neither was given.
    pub credentials: Vec<u8>,
    pub host: Host,
    pub port: u16,
}

#[derive(PartialEq, Eq, Debug)]
pub enum Step {
    /// More bytes must come first.
    More,
    /// The client waits for its answer; what it sent after the request begins at this offset of `bytes`.
    Request(Request, usize),
    /// Python must take over from the first byte on. Nothing that this call would have answered was returned.
    Unusual,
}

enum State {
    Greeting,
    Credentials,
    Request,
}

pub struct Handshake {
    /// All that the client sent.
    pub bytes: Vec<u8>,
    at: usize,
    state: State,
    credentials: Vec<u8>,
}

impl Default for Handshake {
    fn default() -> Self {
        Self { bytes: Vec::new(), at: 0, state: State::Greeting, credentials: Vec::new() }
    }
}

enum Part {
    Missing,
    Odd,
    Done,
    Asked(Request),
}

impl Handshake {
    /// Takes in bytes of the client; what to answer is put behind `answer`. Not to be called after a request.
    pub fn receive(&mut self, data: &[u8], answer: &mut Vec<u8>) -> Step {
        self.bytes.extend_from_slice(data);
        let answered = answer.len();
        loop {
            let part = match self.state {
                State::Greeting => self.greeting(answer),
                State::Credentials => self.credentials(answer),
                State::Request => self.request(),
            };
            match part {
                Part::Done => {}
                Part::Missing => return Step::More,
                Part::Asked(request) => return Step::Request(request, self.at),
                Part::Odd => {
                    answer.truncate(answered);
                    return Step::Unusual;
                }
            }
        }
    }

    fn greeting(&mut self, answer: &mut Vec<u8>) -> Part {
        let rest = &self.bytes[self.at..];
        match rest.first() {
            None => return Part::Missing,
            Some(&VERSION) => {}
            Some(_) => return Part::Odd,
        }
        let Some(methods) = rest.get(1).and_then(|&count| rest.get(2..2 + usize::from(count))) else {
            return Part::Missing;
        };
        // A client that offers both has credentials to give, and they choose its circuit.
        let (method, state) = if methods.contains(&USER_PASSWORD) {
            (USER_PASSWORD, State::Credentials)
        } else if methods.contains(&NO_AUTHENTICATION) {
            (NO_AUTHENTICATION, State::Request)
        } else {
            return Part::Odd;
        };
        self.at += 2 + methods.len();
        self.state = state;
        answer.extend_from_slice(&[VERSION, method]);
        Part::Done
    }

    fn credentials(&mut self, answer: &mut Vec<u8>) -> Part {
        let rest = &self.bytes[self.at..];
        match rest.first() {
            None => return Part::Missing,
            Some(&AUTH_VERSION) => {}
            Some(_) => return Part::Odd,
        }
        let Some((user, rest)) = counted(&rest[1..]) else { return Part::Missing };
        let Some((password, _)) = counted(rest) else { return Part::Missing };
        if !user.is_empty() || !password.is_empty() {
            // A user name has at most 255 bytes.
            self.credentials.extend_from_slice(&(user.len() as u16).to_be_bytes());
            self.credentials.extend_from_slice(user);
            self.credentials.extend_from_slice(password);
        }
        self.at += 3 + user.len() + password.len();
        self.state = State::Request;
        answer.extend_from_slice(&[AUTH_VERSION, 0]);
        Part::Done
    }

    fn request(&mut self) -> Part {
        let rest = &self.bytes[self.at..];
        if rest.first().is_some_and(|&version| version != VERSION)
            || rest.get(1).is_some_and(|&command| command != CONNECT)
        {
            return Part::Odd;
        }
        let Some(&kind) = rest.get(3) else { return Part::Missing };
        let rest = &rest[4..];
        let (host, length) = match kind {
            IPV4 => {
                let Some(raw) = rest.first_chunk::<4>() else { return Part::Missing };
                (Some(Host::Address(IpAddr::V4(Ipv4Addr::from(*raw)))), 4)
            }
            IPV6 => {
                let Some(raw) = rest.first_chunk::<16>() else { return Part::Missing };
                let address = Ipv6Addr::from(*raw);
                let is_mapped = address.to_ipv4_mapped().is_some();
                ((!is_mapped).then_some(Host::Address(IpAddr::V6(address))), 16)
            }
            NAME => {
                let Some((raw, _)) = counted(rest) else { return Part::Missing };
                (plain_name(raw).map(Host::Name), 1 + raw.len())
            }
            _ => return Part::Odd,
        };
        let Some(port) = rest[length..].first_chunk::<2>() else { return Part::Missing };
        let port = u16::from_be_bytes(*port);
        let Some(host) = host else { return Part::Odd };
        if port == 0 {
            return Part::Odd;
        }
        self.at += 4 + length + 2;
        Part::Asked(Request { credentials: std::mem::take(&mut self.credentials), host, port })
    }
}

/// A byte that counts, what it counts, and what follows.
fn counted(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&count, rest) = data.split_first()?;
    (rest.len() >= usize::from(count)).then(|| rest.split_at(usize::from(count)))
}

/// The name as Python writes it, if it is a plain one: letters, digits, hyphens, underscores and dots, and no address.
fn plain_name(raw: &[u8]) -> Option<String> {
    let text = raw.strip_suffix(b".").unwrap_or(raw);
    let is_plain = text.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let may_be_address = text.iter().all(|&byte| byte.is_ascii_digit() || byte == b'.');
    let is_fine = is_plain
        && !may_be_address
        && text.len() <= MAX_NAME
        && !text.windows(2).any(|pair| pair == b"..")
        // Python looks for an address before it takes the last dot away.
        && !(raw.len() != text.len() && raw[0].is_ascii_digit());
    is_fine.then(|| text.iter().map(|&byte| char::from(byte.to_ascii_lowercase())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(pieces: &[&[u8]]) -> (Step, Vec<u8>, Vec<u8>) {
        let (mut handshake, mut answer) = (Handshake::default(), Vec::new());
        for (at, piece) in pieces.iter().enumerate() {
            match handshake.receive(piece, &mut answer) {
                Step::More => {}
                step => {
                    pieces[at + 1..].iter().for_each(|piece| handshake.bytes.extend_from_slice(piece));
                    return (step, answer, handshake.bytes);
                }
            }
        }
        (Step::More, answer, handshake.bytes)
    }

    fn name(text: &str) -> Vec<u8> {
        let mut bytes = b"\x05\x01\x00\x05\x01\x00\x03".to_vec();
        bytes.push(text.len() as u8);
        bytes.extend_from_slice(text.as_bytes());
        bytes.extend_from_slice(&443u16.to_be_bytes());
        bytes
    }

    #[test]
    fn understands_a_browser() {
        let mut bytes = name("Example.ORG.");
        let length = bytes.len();
        bytes.extend_from_slice(b"early");
        let (step, answer, kept) = run(&[&bytes]);
        let host = Host::Name("example.org".to_owned());
        assert_eq!(step, Step::Request(Request { credentials: Vec::new(), host, port: 443 }, length));
        assert_eq!(answer, b"\x05\x00");
        assert_eq!(&kept[length..], b"early");
    }

    #[test]
    fn credentials_choose_and_empty_ones_do_not() {
        let request = b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50";
        let host = Host::Address("127.0.0.1".parse().unwrap());
        for (credentials, kept) in [(&b"\x01\x01a\x02bc"[..], &b"\x00\x01abc"[..]), (b"\x01\x00\x00", b"")] {
            let (step, answer, bytes) = run(&[b"\x05\x02\x00\x02", credentials, request]);
            let wanted = Request { credentials: kept.to_vec(), host: host.clone(), port: 80 };
            assert_eq!(step, Step::Request(wanted, bytes.len()));
            assert_eq!(answer, b"\x05\x02\x01\x00");
        }
    }

    #[test]
    fn leaves_the_unusual_to_python() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x04\x01",
            b"\x05\x01\x01",
            b"\x05\x01\x02\x02",
            b"\x05\x01\x00\x04",
            b"\x05\x01\x00\x05\x03\x00\x01",
            b"\x05\x01\x00\x05\x01\x00\x02",
            b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x00",
            b"\x05\x01\x00\x05\x01\x00\x04\0\0\0\0\0\0\0\0\0\0\xff\xff\x01\x02\x03\x04\x00\x50",
        ] {
            assert_eq!(run(&[bytes]).0, Step::Unusual);
        }
        for text in
            ["", ".", "a..b", "1.2.3.4", "1.2.3.4.", "1a.", "::1", "[::1]", "a b", "caf\u{e9}.fr", "1"]
        {
            assert_eq!(run(&[&name(text)]).0, Step::Unusual, "{text}");
        }
        for text in ["1and1.com", "_dmarc.example", "xn--caf-dma.fr", "localhost"] {
            assert!(matches!(run(&[&name(text)]).0, Step::Request(..)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same(
            head in prop::sample::select(vec![
                b"\x05\x01\x00\x05\x01\x00".to_vec(), b"\x05\x02\x00\x02\x01\x02ab\x01c\x05\x01\x00".to_vec(),
                name("example.org"), b"\x05".to_vec(), Vec::new(),
            ]),
            tail in prop::collection::vec(any::<u8>(), 0..40),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut bytes = head;
            bytes.extend_from_slice(&tail);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let (whole, answer, _) = run(&[&bytes]);
            let (step, split_answer, kept) = run(&pieces);
            prop_assert_eq!(kept, bytes);
            prop_assert_eq!(&step, &whole);
            // What is unusual may be found late, after an answer that Python would have given, too.
            if step != Step::Unusual {
                prop_assert_eq!(split_answer, answer);
            } else {
                prop_assert!(b"\x05\x00".starts_with(&split_answer) || b"\x05\x02\x01\x00".starts_with(&split_answer));
            }
        }
    }
}
