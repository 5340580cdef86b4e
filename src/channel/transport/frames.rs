//! Reads along with the frames on a connection, for what h2 does not tell: the server's SETTINGS, its GOAWAY at once,
//! and which calls were never written.

/// Follows an incoming HTTP/2 byte stream, however it is cut into pieces. Payloads are skipped, nothing is kept.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    state: State,
    /// Whether the first frame has begun as it must.
    begun: bool,
    /// Bytes in DATA frames.
    data: usize,
    /// Whether a call made progress.
    has_progress: bool,
    /// Whether a frame of a call has begun.
    is_of_calls: bool,
}

/// What a frame says that concerns the whole connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A SETTINGS frame is complete; the limit of open calls, if it states one.
    Settings { max_concurrent_streams: Option<u32> },
    /// The server takes no new calls, and why.
    GoAway { code: u32 },
    /// It says with that GOAWAY that it was pinged too often.
    TooManyPings,
}

/// The bytes are not HTTP/2: the first frame has to be the server's SETTINGS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server does not speak HTTP/2: it did not begin with SETTINGS")]
pub(crate) struct NotHttp2;

#[derive(Debug)]
enum State {
    /// In the nine bytes before a payload.
    Header(Partial<9>),
    /// In a payload that says nothing to us, so many bytes before its end.
    Skip { left: u32 },
    /// In a SETTINGS payload, entries of six bytes.
    Settings { left: u32, entry: Partial<6>, streams: Option<u32> },
    /// In a GOAWAY payload, which begins with the last stream's id and the code.
    GoAway { left: u32, head: Partial<8> },
    /// In the text of a GOAWAY that tells the client to be calm.
    Calm { left: u32, text: Partial<14> },
}

impl Default for State {
    fn default() -> Self {
        Self::Header(Partial::default())
    }
}

impl FrameReader {
    /// Takes the next bytes and tells each notice in them.
    ///
    /// # Errors
    ///
    /// Only for the first frame. Whatever is malformed later is for h2 to refuse; here it is skipped.
    pub(crate) fn read(&mut self, mut bytes: &[u8], mut notice: impl FnMut(Notice)) -> Result<(), NotHttp2> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Header(partial) => {
                    let Some(header) = partial.take(&mut bytes) else {
                        break;
                    };
                    self.state = self.header(header, &mut notice)?;
                }
                State::Skip { left } => {
                    skip(left, &mut bytes);
                    if *left == 0 {
                        self.state = State::default();
                    }
                }
                State::Settings { left, entry, streams } => {
                    let Some([id0, id1, value @ ..]) = entry.take(&mut bytes) else {
                        break;
                    };
                    if u16::from_be_bytes([id0, id1]) == MAX_CONCURRENT_STREAMS {
                        *streams = Some(u32::from_be_bytes(value));
                    }
                    *left -= 6;
                    if *left == 0 {
                        notice(Notice::Settings { max_concurrent_streams: *streams });
                        self.state = State::default();
                    }
                }
                State::GoAway { left, head } => {
                    let Some([_, _, _, _, code @ ..]) = head.take(&mut bytes) else {
                        break;
                    };
                    let (code, left) = (u32::from_be_bytes(code), *left - 8);
                    notice(Notice::GoAway { code });
                    let is_explained = code == ENHANCE_YOUR_CALM && left >= 14;
                    self.state =
                        if is_explained { State::Calm { left, text: Partial::default() } } else { skipped(left) };
                }
                State::Calm { left, text } => {
                    let Some(text) = text.take(&mut bytes) else {
                        break;
                    };
                    if text == *TOO_MANY_PINGS {
                        notice(Notice::TooManyPings);
                    }
                    self.state = skipped(*left - 14);
                }
            }
        }
        Ok(())
    }

    /// How many bytes of data came since this was asked the last time, whole frames as soon as they begin.
    pub(crate) fn take_data(&mut self) -> usize {
        std::mem::take(&mut self.data)
    }

    /// Whether a call made progress since this was asked the last time: DATA came, or a window for more of a request.
    /// Heads are for the calls themselves to judge.
    pub(crate) fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.has_progress)
    }

    /// Whether a frame of a call began since this was asked the last time.
    pub(crate) fn take_is_of_calls(&mut self) -> bool {
        std::mem::take(&mut self.is_of_calls)
    }

    fn header(&mut self, header: [u8; 9], notice: &mut impl FnMut(Notice)) -> Result<State, NotHttp2> {
        let [l0, l1, l2, kind, flags, stream @ ..] = header;
        let left = u32::from_be_bytes([0, l0, l1, l2]);
        let whole_connection = u32::from_be_bytes(stream) & STREAM_ID == 0;
        let settings = kind == SETTINGS && flags & ACK == 0 && whole_connection && left.is_multiple_of(6);
        if !self.begun && !settings {
            return Err(NotHttp2);
        }
        self.begun = true;
        self.is_of_calls |= is_of_calls(kind);
        if kind == DATA {
            self.data += usize::try_from(left).unwrap_or(usize::MAX);
        }
        self.has_progress |= kind == DATA || kind == WINDOW_UPDATE && !whole_connection;
        Ok(match kind {
            _ if settings && left == 0 => {
                notice(Notice::Settings { max_concurrent_streams: None });
                State::default()
            }
            _ if settings => State::Settings { left, entry: Partial::default(), streams: None },
            GOAWAY if whole_connection && left >= 8 => State::GoAway { left, head: Partial::default() },
            _ => skipped(left),
        })
    }
}

/// Follows an outgoing HTTP/2 byte stream as far as the socket has taken it.
#[derive(Debug)]
pub(crate) struct FrameWriter {
    /// Bytes of the connection's preface or of a payload that are still to come.
    skip: u32,
    header: Partial<9>,
}

impl Default for FrameWriter {
    fn default() -> Self {
        Self { skip: PREFACE, header: Partial::default() }
    }
}

impl FrameWriter {
    /// Takes the next bytes and tells the stream of each HEADERS frame that has begun. Returns whether a frame of a
    /// call has.
    pub(crate) fn wrote(&mut self, mut bytes: &[u8], mut headers: impl FnMut(u32)) -> bool {
        let mut wrote_calls = false;
        while !bytes.is_empty() {
            if self.skip > 0 {
                skip(&mut self.skip, &mut bytes);
                continue;
            }
            let Some([l0, l1, l2, kind, _, stream @ ..]) = self.header.take(&mut bytes) else { break };
            self.skip = u32::from_be_bytes([0, l0, l1, l2]);
            wrote_calls |= is_of_calls(kind);
            if kind == HEADERS {
                headers(u32::from_be_bytes(stream) & STREAM_ID);
            }
        }
        wrote_calls
    }
}

/// Whether frames of this type carry calls, rather than say something about streams or the connection.
fn is_of_calls(kind: u8) -> bool {
    kind == HEADERS || kind == DATA
}

fn skipped(left: u32) -> State {
    if left == 0 { State::default() } else { State::Skip { left } }
}

fn skip(left: &mut u32, bytes: &mut &[u8]) {
    let here = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
    *bytes = &bytes[here..];
    // It is at most what was left.
    *left = left.saturating_sub(u32::try_from(here).unwrap_or(u32::MAX));
}

/// A field of fixed length that may come in pieces.
#[derive(Debug, Clone, Copy)]
struct Partial<const N: usize> {
    bytes: [u8; N],
    filled: usize,
}

impl<const N: usize> Default for Partial<N> {
    fn default() -> Self {
        Self { bytes: [0; N], filled: 0 }
    }
}

impl<const N: usize> Partial<N> {
    /// Moves what is missing out of `bytes`; the field and an empty place for the next one, once it is whole.
    fn take(&mut self, bytes: &mut &[u8]) -> Option<[u8; N]> {
        if self.filled == 0
            && let Some((whole, rest)) = bytes.split_first_chunk::<N>()
        {
            *bytes = rest;
            return Some(*whole);
        }
        let here = bytes.len().min(N - self.filled);
        let (now, rest) = bytes.split_at(here);
        self.bytes[self.filled..self.filled + here].copy_from_slice(now);
        self.filled += here;
        *bytes = rest;
        if self.filled < N {
            return None;
        }
        self.filled = 0;
        Some(self.bytes)
    }
}

/// Frame types, flags, settings and masks as RFC 9113 numbers them.
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const GOAWAY: u8 = 0x7;
const WINDOW_UPDATE: u8 = 0x8;
const ACK: u8 = 0x1;
const MAX_CONCURRENT_STREAMS: u16 = 0x3;
const STREAM_ID: u32 = 0x7fff_ffff;
const ENHANCE_YOUR_CALM: u32 = 0xb;

/// The text of gRPC servers for it.
const TOO_MANY_PINGS: &[u8; 14] = b"too_many_pings";

/// The length of what a client says before its first frame.
const PREFACE: u32 = 24;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(payload.len()).expect("a short payload").to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
        let payload: Vec<u8> =
            entries.iter().flat_map(|(id, value)| id.to_be_bytes().into_iter().chain(value.to_be_bytes())).collect();
        frame(SETTINGS, 0, 0, &payload)
    }

    fn goaway(code: u32, debug: &[u8]) -> Vec<u8> {
        frame(GOAWAY, 0, 0, &[&[0, 0, 0, 5], &code.to_be_bytes()[..], debug].concat())
    }

    fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Notice>, Result<(), NotHttp2>) {
        let (mut reader, mut notices) = (FrameReader::default(), Vec::new());
        for piece in pieces {
            if let Err(error) = reader.read(piece, |notice| notices.push(notice)) {
                return (notices, Err(error));
            }
        }
        (notices, Ok(()))
    }

    fn conversation() -> (Vec<u8>, Vec<Notice>) {
        let bytes = [
            settings(&[(4, 65_535), (MAX_CONCURRENT_STREAMS, 100), (5, 16_384)]),
            frame(SETTINGS, ACK, 0, &[]),
            frame(1, 4, 1, b"headers"),
            frame(0, 0, 1, &[7; 300]),
            frame(0, 1, 1, &[]),
            settings(&[]),
            settings(&[(MAX_CONCURRENT_STREAMS, 4)]),
            goaway(0, b""),
            frame(6, 0, 0, &[4; 8]),
            goaway(11, b"too_many_pings"),
            goaway(11, b"too_many_resets"),
            goaway(11, b"calm down"),
            goaway(2, b"too_many_pings"),
            frame(0, 0, 3, &[4; 9]),
        ]
        .concat();
        let told = |max_concurrent_streams| Notice::Settings { max_concurrent_streams };
        let going = |code| Notice::GoAway { code };
        let mut notices = vec![told(Some(100)), told(None), told(Some(4)), going(0), going(11), Notice::TooManyPings];
        notices.extend([going(11), going(11), going(2)]);
        (bytes, notices)
    }

    #[test]
    fn settings_and_goaway_are_reported_in_order_and_nothing_else() {
        let (bytes, expected) = conversation();
        assert_eq!(read([&bytes[..]]), (expected, Ok(())), "the whole conversation in one piece");
    }

    #[test]
    fn every_cut_of_the_stream_reads_the_same() {
        let (bytes, expected) = conversation();
        for size in 1..40 {
            assert_eq!(read(bytes.chunks(size)), (expected.clone(), Ok(())), "in pieces of {size} bytes");
        }
        for cut in 0..bytes.len() {
            let (left, right) = bytes.split_at(cut);
            assert_eq!(read([left, right]), (expected.clone(), Ok(())), "cut after {cut} bytes");
        }
    }

    #[test]
    fn frames_of_calls_are_told_from_the_others_both_ways() {
        for kind in 0..10 {
            let (mut reader, mut writer) = (FrameReader::default(), FrameWriter { skip: 0, ..FrameWriter::default() });
            let bytes = [settings(&[]), frame(kind, 0, 1, b"payload")].concat();
            reader.read(&bytes, |_| {}).expect("it begins with SETTINGS");
            let expected = kind == HEADERS || kind == DATA;
            assert_eq!(reader.take_is_of_calls(), expected, "a frame of type {kind} comes");
            assert!(!reader.take_is_of_calls(), "it is told once");
            assert_eq!(writer.wrote(&bytes, |_| {}), expected, "a frame of type {kind} is written");
        }
    }

    #[test]
    fn a_server_that_does_not_begin_with_settings_is_refused() {
        for bytes in [
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            goaway(0, b""),
            frame(SETTINGS, ACK, 0, &[]),
            frame(SETTINGS, 0, 1, &[0; 6]),
            frame(SETTINGS, 0, 0, &[0; 7]),
        ] {
            assert_eq!(read([&bytes[..]]), (vec![], Err(NotHttp2)), "{bytes:?} begins no connection");
        }
    }

    #[test]
    fn malformed_frames_are_skipped_once_the_connection_has_begun() {
        let bytes = [
            settings(&[]),
            frame(SETTINGS, 0, 0, &[0; 7]),
            frame(GOAWAY, 0, 0, &[0; 7]),
            frame(GOAWAY, 0, 9, &[0; 8]),
            settings(&[(MAX_CONCURRENT_STREAMS, 1), (MAX_CONCURRENT_STREAMS, 2)]),
        ]
        .concat();
        let expected = [None, Some(2)].map(|max_concurrent_streams| Notice::Settings { max_concurrent_streams });
        assert_eq!(read([&bytes[..]]), (expected.to_vec(), Ok(())), "only well-formed frames are reported");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(head in any::<bool>(), pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..64)) {
            let begin = if head { settings(&[]) } else { Vec::new() };
            let _ = read(std::iter::once(&begin[..]).chain(pieces.iter().map(Vec::as_slice)));
        }
    }

    proptest! {
        #[test]
        fn the_streams_of_all_heads_are_reported_however_the_bytes_are_cut(
            frames in prop::collection::vec((0_u8..10, 1_u32..1_000, prop::collection::vec(any::<u8>(), 0..50)), 0..20),
            cut in 1_usize..40,
        ) {
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            for (kind, stream, payload) in &frames {
                bytes.extend(frame(*kind, 0, *stream, payload));
            }
            let heads: Vec<_> = frames.iter().filter(|(kind, ..)| *kind == HEADERS).map(|(_, stream, _)| *stream).collect();
            let (mut writer, mut told) = (FrameWriter::default(), Vec::new());
            for piece in bytes.chunks(cut) {
                _ = writer.wrote(piece, |stream| told.push(stream));
            }
            prop_assert_eq!(told, heads);
        }
    }
}
