//! The owner of a call's key: a ring of hashes.

use std::fmt;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use xxhash_rust::xxh3::xxh3_64;

use super::candidate::Candidate;
use crate::channel::policy::{CallHead, Needs, PickArgs, Picker, Policy};

/// All calls with one key go to one instance, its owner: for caches, sessions and locks that live in a server's memory.
///
/// Keys spread over the instances by weight. An instance that leaves, or is not READY, gives its keys to many others,
/// and has them back when it returns; the keys of others stay where they are. The owner of a key follows from addresses
/// and weights alone: it is the same in every process and after every restart, without any agreement. A call for whose
/// owner there is no room, or that it refused, goes to any other; one without a key goes to a random one.
///
/// So all clients have to see the same instances: a channel with a [subset](crate::ChannelBuilder::subset) is refused.
/// With a [preferred zone](crate::ChannelBuilder::prefer_zone) a key has an owner in each zone, on which the clients of
/// one zone agree.
///
/// Each instance has four points on the ring for each unit of its weight: with the default weight of 10 forty, by which
/// its share of the keys is right within about 16 % (a standard deviation), and with a weight of 100 within 5 %. Where
/// all of them together would be more than four million points, all have fewer in the same proportion.
/// [`ring_size`](Self::ring_size) sets other limits.
///
/// ```
/// use http::HeaderName;
/// use tonic_etcd::policy::RingHash;
///
/// let by_user = RingHash::by_header(HeaderName::from_static("x-user"));
/// let by_path = RingHash::by(|call| Some(RingHash::hash(call.path().as_bytes())));
/// # _ = (by_user, by_path);
/// ```
#[derive(Clone)]
pub struct RingHash {
    key: Key,
    sizes: Sizes,
}

/// The fewest and the most points of a ring.
#[derive(Clone, Copy)]
struct Sizes {
    min: u64,
    max: u64,
}

#[derive(Clone)]
enum Key {
    Header(HeaderName),
    Function(Arc<Function>),
}

type Function = dyn Fn(&CallHead<'_>) -> Option<u64> + Send + Sync;

impl RingHash {
    /// The key is the value of a header, which is what gRPC calls metadata. Several are joined by commas, in the order
    /// that they stand in, as gRPC's proposal A76 says.
    #[must_use]
    pub fn by_header(name: HeaderName) -> Self {
        Self { key: Key::Header(name), sizes: Sizes::default() }
    }

    /// The key is what the function makes of the head of the request: path, headers and extensions. `None` is no key.
    ///
    /// It is called once a call, on the task that makes the call. Numbers that are not [hashes](Self::hash) yet make a
    /// ring that is not even.
    #[must_use]
    pub fn by(key: impl Fn(&CallHead<'_>) -> Option<u64> + Send + Sync + 'static) -> Self {
        Self { key: Key::Function(Arc::new(key)), sizes: Sizes::default() }
    }

    /// The fewest and the most points that the ring has: gRPC's `minRingSize` and `maxRingSize` (A42). More points
    /// share the keys more evenly, and cost memory (16 bytes each) and time whenever the instances change. More than
    /// 4,194,304 count as that many, and a `min` above `max` as `max`. Defaults to 0 and 4,194,304.
    ///
    /// Instances that would have more or fewer points in all have them reduced or increased in proportion. Each has one
    /// at least, whatever `max` is, and counts are whole: the ring may be off by one point for each instance. At a
    /// limit an instance that comes or goes changes how many points the others have, which moves a few of their keys,
    /// too. All processes need the same sizes to find the same owners.
    #[must_use]
    pub fn ring_size(mut self, min: u32, max: u32) -> Self {
        let max = u64::from(max).clamp(1, MAX_POINTS);
        self.sizes = Sizes { min: u64::from(min).min(max), max };
        self
    }

    /// A hash that is the same in every process and version of this crate: XXH3 with 64 bits.
    #[must_use]
    pub fn hash(bytes: &[u8]) -> u64 {
        xxh3_64(bytes)
    }
}

impl Policy for RingHash {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        Box::new(Ring::new(candidates, self.sizes))
    }

    fn key(&self, call: &CallHead<'_>) -> Option<u64> {
        match &self.key {
            Key::Header(name) => {
                let mut values = call.headers().get_all(name).iter().map(HeaderValue::as_bytes);
                let first = values.next()?;
                let Some(second) = values.next() else { return Some(Self::hash(first)) };
                let all: Vec<&[u8]> = [first, second].into_iter().chain(values).collect();
                Some(Self::hash(&all.join(&b',')))
            }
            Key::Function(key) => key(call),
        }
    }

    fn needs(&self) -> Needs {
        Needs::new().with_full_weights().with_every_instance()
    }
}

impl fmt::Debug for RingHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("RingHash");
        if let Key::Header(name) = &self.key {
            out.field("header", name);
        }
        out.field("points", &(self.sizes.min..=self.sizes.max)).finish_non_exhaustive()
    }
}

struct Ring {
    /// In the order of their hashes.
    points: Box<[Point]>,
    /// For each of the first [`bits`](Self::bits) bits that a key may have, the first point that has them or more.
    guide: Box<[u32]>,
    bits: u32,
}

/// A hash, and whose it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    hash: u64,
    owner: u32,
}

impl Ring {
    fn new(candidates: &[Candidate], sizes: Sizes) -> Self {
        let scale = sizes.scale(candidates.iter().map(points_by_weight).sum());
        let mut points = Vec::new();
        for (owner, candidate) in (0_u32..).zip(candidates) {
            let seed = xxh3_64(candidate.instance().address.to_string().as_bytes());
            let count = scale.of(points_by_weight(candidate));
            points.extend((0..count).map(|number| Point { hash: mixed(seed, number), owner }));
        }
        // Ties are as good as impossible; the owner's order, which the address decides, settles them all the same.
        points.sort_unstable();
        // Between one and two points for each entry, so that a look and a step or two find an owner.
        let bits = points.len().max(2).ilog2();
        let mut guide = Vec::with_capacity(1 << bits);
        let mut at = 0;
        for first in 0..1_u64 << bits {
            while points.get(at).is_some_and(|point| point.hash >> (64 - bits) < first) {
                at += 1;
            }
            guide.push(u32::try_from(at).unwrap_or(u32::MAX));
        }
        Self { points: points.into(), guide: guide.into(), bits }
    }
}

impl Picker for Ring {
    /// The owner of the first point at the key, or at any where the call has none, or behind it.
    fn pick(&self, _: &[Candidate], call: &PickArgs<'_>) -> Option<usize> {
        let key = call.key().unwrap_or_else(|| fastrand::u64(..));
        let entry = usize::try_from(key >> (64 - self.bits)).unwrap_or(usize::MAX);
        let from = self.guide.get(entry).map_or(0, |&from| from as usize);
        let behind = self.points[from..].iter().find(|point| point.hash >= key);
        // Behind the last one the ring begins again.
        behind.or(self.points.first()).map(|point| point.owner as usize)
    }
}

fn points_by_weight(candidate: &Candidate) -> u64 {
    u64::from(candidate.full_weight()) * POINTS_PER_WEIGHT
}

impl Default for Sizes {
    fn default() -> Self {
        Self { min: 0, max: MAX_POINTS }
    }
}

impl Sizes {
    /// What the points of each instance are multiplied by, where all of them together are `total`.
    fn scale(self, total: u64) -> Scale {
        Scale { size: total.clamp(self.min, self.max), total }
    }
}

/// The points of a ring by the limits, and by weight.
#[derive(Clone, Copy)]
struct Scale {
    size: u64,
    total: u64,
}

impl Scale {
    /// How many points an instance has, of which its weight says `points`. Rounded up to reach a minimum and down to
    /// stay below a maximum.
    fn of(self, points: u64) -> u64 {
        let scaled = u128::from(points) * u128::from(self.size);
        let total = u128::from(self.total.max(1));
        let count = if self.size > self.total { scaled.div_ceil(total) } else { scaled / total };
        u64::try_from(count).unwrap_or(u64::MAX).max(1)
    }
}

/// The hash of one of an address's points: steps by the golden section, which no two seeds share, mixed so that each
/// bit of the sum counts for each of the result (the finalizer of `SplitMix64`).
fn mixed(seed: u64, number: u64) -> u64 {
    let mut hash = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

const POINTS_PER_WEIGHT: u64 = 4;

/// A ring of ten thousand instances is made in a few dozen milliseconds.
const MAX_POINTS: u64 = 1 << 22;

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;
    use crate::channel::policy::tests::candidates;

    /// The port that owns each of `keys` keys.
    fn owners(of: &[Candidate], keys: u64) -> Vec<u16> {
        let ring = Ring::new(of, Sizes::default());
        let port = |index: usize| of[index].instance().address.port();
        let owner = |key| ring.pick(of, &PickArgs::new(Some(key), &[])).expect("a ring has owners");
        (0..keys).map(|key| port(owner(RingHash::hash(&key.to_be_bytes())))).collect()
    }

    fn by_user() -> RingHash {
        RingHash::by_header(HeaderName::from_static("x-user"))
    }

    fn request(user: Option<&str>) -> http::Request<()> {
        let mut request = http::Request::post("http://echo/echo.Echo/UnaryEcho");
        if let Some(user) = user {
            request = request.header("x-user", user);
        }
        request.body(()).expect("a request")
    }

    #[test]
    fn owners_are_the_same_everywhere_and_for_ever() {
        let owners = owners(&candidates(&[10; 5]), 8);
        assert_eq!(owners, [2, 1, 5, 1, 4, 2, 1, 4], "a change here moves all keys");
    }

    #[test]
    fn the_order_of_the_instances_does_not_matter() {
        let forwards = candidates(&[10, 20, 30, 40]);
        let mut backwards = forwards.clone();
        backwards.reverse();
        assert_eq!(owners(&forwards, 10_000), owners(&backwards, 10_000));
    }

    #[test]
    fn keys_are_shared_by_weight() {
        let weights = [100, 100, 200, 400];
        let mut shares = HashMap::<u16, u32>::new();
        for owner in owners(&candidates(&weights), 100_000) {
            *shares.entry(owner).or_default() += 1;
        }
        for (port, weight) in (1_u16..).zip(weights) {
            let (share, ideal) = (f64::from(shares[&port]), f64::from(weight) / 800.0 * 100_000.0);
            assert!((share / ideal - 1.0).abs() < 0.2, "{port}, weight {weight}, owns {share} of {ideal} keys");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_member_that_leaves_or_joins_moves_only_its_own_share(
            weights in prop::collection::vec(1_u16..100, 2..20),
            leaves in any::<prop::sample::Index>(),
        ) {
            let all = candidates(&weights);
            let leaves = leaves.index(all.len());
            let port = all[leaves].instance().address.port();
            let mut rest = all.clone();
            rest.remove(leaves);
            for (before, after) in owners(&all, 2_000).into_iter().zip(owners(&rest, 2_000)) {
                prop_assert!(before == after || before == port, "a key moved from {before} to {after} as {port} left");
            }
        }

        #[test]
        fn every_key_has_the_owner_that_a_walk_around_the_ring_finds(
            weights in prop::collection::vec(1_u16..50, 1..20),
            keys in prop::collection::vec(any::<u64>(), 100),
        ) {
            let all = candidates(&weights);
            let ring = Ring::new(&all, Sizes::default());
            for key in keys.into_iter().chain([0, u64::MAX]) {
                let walked = ring.points.iter().find(|point| point.hash >= key).unwrap_or(&ring.points[0]);
                prop_assert_eq!(ring.pick(&all, &PickArgs::new(Some(key), &[])), Some(walked.owner as usize));
            }
        }
    }

    #[test]
    fn the_largest_weights_make_no_ring_that_is_too_large() {
        let all = candidates(&[u16::MAX; 100]);
        let ring = Ring::new(&all, Sizes::default());
        let most = usize::try_from(MAX_POINTS).expect("a small number");
        assert!((most / 4..=most).contains(&ring.points.len()), "{} points", ring.points.len());
    }

    #[test]
    fn a_ring_has_as_many_points_as_its_limits_say() {
        for (weights, min, max, size) in [
            (vec![10; 5], 0, u32::MAX, 200),
            (vec![10; 5], 1_024, 4_096, 1_025),
            (vec![10; 5], 0, 100, 100),
            (vec![100, 300], 1_024, 4_096, 1_600),
            (vec![100, 300], 4_096, 4_096, 4_096),
            (vec![100, 300], 0, 1_000, 1_000),
            // A contradiction, and more instances than points.
            (vec![10; 5], 500, 100, 100),
            (vec![10; 50], 0, 8, 50),
            (vec![10; 50], 0, 0, 50),
        ] {
            let ring = Ring::new(&candidates(&weights), by_user().ring_size(min, max).sizes);
            assert_eq!(ring.points.len(), size, "{} instances, {min} to {max}", weights.len());
        }
        let [mut light, mut heavy] = [0, 0];
        let ring = Ring::new(&candidates(&[100, 300]), by_user().ring_size(0, 1_000).sizes);
        ring.points.iter().for_each(|point| if point.owner == 0 { light += 1 } else { heavy += 1 });
        assert_eq!((light, heavy), (250, 750), "by weight all the same");
    }

    #[test]
    fn at_a_limit_one_that_joins_moves_few_keys_of_the_others() {
        let limited = |of: &[Candidate]| {
            let ring = Ring::new(of, by_user().ring_size(0, 4_096).sizes);
            let port = |index: usize| of[index].instance().address.port();
            let keys = (0..10_000_u64).map(|key| RingHash::hash(&key.to_be_bytes()));
            let owner = |key| ring.pick(of, &PickArgs::new(Some(key), &[])).expect("a ring has owners");
            keys.map(|key| port(owner(key))).collect::<Vec<_>>()
        };
        let all = candidates(&[10; 104]);
        let (before, after) = (limited(&all[..103]), limited(&all));
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after && **after != 104).count();
        assert!(moved < 300, "{moved} of 10,000 keys moved between the others");
    }

    #[test]
    fn calls_with_one_header_have_one_key_and_calls_without_have_any() {
        let policy = by_user();
        let key = |user| policy.key(&CallHead::from(&request(user)));
        assert_eq!(key(Some("ann")), Some(RingHash::hash(b"ann")));
        assert_ne!(key(Some("ann")), key(Some("bob")));
        assert_eq!(key(None), None, "no key");
        let mut several = request(Some("ann"));
        for user in ["bob", "eve"] {
            several.headers_mut().append("x-user", HeaderValue::from_static(user));
        }
        assert_eq!(policy.key(&CallHead::from(&several)), Some(RingHash::hash(b"ann,bob,eve")));
        let all = candidates(&[10; 8]);
        let picker = policy.picker(&all);
        let owners: HashSet<_> = (0..1_000).map(|_| picker.pick(&all, &PickArgs::default())).collect();
        assert_eq!(owners.len(), 8, "and no owner");
    }

    #[test]
    fn a_function_makes_the_key_of_whatever_the_head_holds() {
        let policy = RingHash::by(|call| call.extensions().get::<u64>().copied());
        let mut head = request(None);
        head.extensions_mut().insert(7_u64);
        assert_eq!(policy.key(&CallHead::from(&head)), Some(7));
    }
}
