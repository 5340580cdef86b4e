//! How long the messages of a body are, read off the prefix of each, against a limit.

/// A limit for each message of one body, and where the body is.
///
/// A message of gRPC is a byte that says whether it is compressed, its length in four bytes, and so many bytes. Frames
/// of HTTP/2 know nothing of that: one may hold several messages, or a part of a prefix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MessageLimit {
    limit: u32,
    at: Place,
}

/// Where a body is.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// So many bytes of a prefix were read, and those of the length that were among them make this.
    Prefix { read: u8, length: u32 },
    /// So many bytes of a message are to come.
    Message { left: u32 },
    /// A message begins that is too long.
    TooLong { bytes: u32 },
}

/// A message that is longer than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong {
    pub(crate) bytes: u32,
    pub(crate) limit: u32,
}

impl MessageLimit {
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, at: Place::BEGIN }
    }

    /// Reads on. Returns how many bytes of `data` come before a message that is [too long](Self::too_long): all of them
    /// where there is none. Nothing that follows is read.
    pub(crate) fn read(&mut self, data: &[u8]) -> usize {
        let (mut begin, mut at) = (0, 0);
        while at < data.len() {
            match self.at {
                Place::Prefix { read, length } => {
                    begin = if read == 0 { at } else { begin };
                    // The first byte is about compression.
                    let length = if read == 0 { 0 } else { length << 8 | u32::from(data[at]) };
                    at += 1;
                    self.at = match read + 1 {
                        PREFIX => self.begin(length),
                        read => Place::Prefix { read, length },
                    };
                }
                Place::Message { left } => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(data.len() - at);
                    let left = left - u32::try_from(here).unwrap_or(left);
                    at += here;
                    self.at = if left == 0 { Place::BEGIN } else { Place::Message { left } };
                }
                Place::TooLong { .. } => break,
            }
        }
        if self.too_long().is_some() { begin } else { data.len() }
    }

    /// The message that is too long, once there was one.
    pub(crate) fn too_long(&self) -> Option<TooLong> {
        match self.at {
            Place::TooLong { bytes } => Some(TooLong { bytes, limit: self.limit }),
            Place::Prefix { .. } | Place::Message { .. } => None,
        }
    }

    fn begin(&self, bytes: u32) -> Place {
        match bytes {
            _ if bytes > self.limit => Place::TooLong { bytes },
            0 => Place::BEGIN,
            left => Place::Message { left },
        }
    }
}

impl Place {
    const BEGIN: Self = Self::Prefix { read: 0, length: 0 };
}

/// The bytes before each message.
const PREFIX: u8 = 5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(lengths: &[u16]) -> Vec<u8> {
        let message = |length: &u16| {
            let prefix = [&[1], u32::from(*length).to_be_bytes().as_slice()].concat();
            [prefix, vec![0xff; usize::from(*length)]].concat()
        };
        lengths.iter().flat_map(message).collect()
    }

    #[test]
    fn a_message_at_the_limit_passes_and_one_byte_more_does_not() {
        for (lengths, limit, passes, too_long) in [
            (&[10, 10, 0, 10][..], 10, 50, None),
            (&[10, 11, 10], 10, 15, Some(11)),
            (&[11], 10, 0, Some(11)),
            (&[0], 0, 5, None),
            (&[0, 0, 1], 0, 10, Some(1)),
            (&[], 0, 0, None),
        ] {
            let mut messages = MessageLimit::new(limit);
            assert_eq!(messages.read(&body(lengths)), passes, "{lengths:?} below {limit}");
            assert_eq!(
                messages.too_long(),
                too_long.map(|bytes| TooLong { bytes, limit }),
                "{lengths:?} below {limit}"
            );
            assert_eq!(messages.read(&[0]), usize::from(too_long.is_none()), "nothing passes after that");
        }
    }

    #[test]
    fn the_prefix_alone_tells_and_all_of_its_bytes_count() {
        let too_long = Some(TooLong { bytes: 0x0102_0304, limit: 1 });
        let mut messages = MessageLimit::new(1);
        assert_eq!((messages.read(&[0, 1, 2, 3]), messages.too_long()), (4, None), "it may still be short");
        assert_eq!((messages.read(&[4]), messages.too_long()), (0, too_long));
        let mut messages = MessageLimit::new(u32::MAX);
        assert_eq!((messages.read(&[0, 255, 255, 255, 255]), messages.too_long()), (5, None));
    }

    proptest! {
        #[test]
        fn frames_may_end_anywhere(
            lengths in prop::collection::vec(0..300_u16, 0..8),
            limit in 0..300_u32,
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let body = body(&lengths);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).chain([0, body.len()]).collect();
            cuts.sort_unstable();
            let mut messages = MessageLimit::new(limit);
            let passed: usize = cuts.windows(2).map(|cut| messages.read(&body[cut[0]..cut[1]])).sum();
            let first = lengths.iter().position(|length| u32::from(*length) > limit);
            let too_long = first.map(|first| TooLong { bytes: lengths[first].into(), limit });
            prop_assert_eq!(messages.too_long(), too_long);
            let short: usize = lengths[..first.unwrap_or(lengths.len())].iter().map(|length| 5 + usize::from(*length)).sum();
            // A prefix that another frame completes has passed as far as it was there.
            prop_assert!((short..short + 5).contains(&passed), "{} passed, and {} are short", passed, short);
        }
    }
}
