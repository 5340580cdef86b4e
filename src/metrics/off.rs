//! The handles without the feature: of no size, and every call of them is gone in the binary.

use std::marker::PhantomData;

use super::Unit;

const _: () = assert!(size_of::<(Metric<Counter>, Counter, Gauge, Histogram, Share, Moment)>() == 0);

/// A metric that nothing is recorded of.
#[derive(Debug)]
pub(crate) struct Metric<H>(PhantomData<H>);

impl<H> Metric<H> {
    pub(crate) const fn new(_: &'static str, _: Unit, _: &'static [&'static str], _: &'static str) -> Self {
        Self(PhantomData)
    }
}

impl<H: Default> Metric<H> {
    #[allow(clippy::unused_self)]
    pub(crate) fn with(&self, _: &[&str]) -> H {
        H::default()
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Counter;

impl Counter {
    #[allow(clippy::unused_self)]
    pub(crate) fn add(&self, _: u64) {}
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Gauge;

impl Gauge {
    #[allow(clippy::unused_self)]
    pub(crate) fn add(&self, _: f64) {}
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Histogram;

impl Histogram {
    #[allow(clippy::unused_self)]
    pub(crate) fn record(&self, _: f64) {}
}

/// A part of a gauge that is not there.
#[derive(Debug)]
pub(crate) struct Share;

impl Share {
    pub(crate) fn new(_: Gauge, _: f64) -> Self {
        Self
    }

    #[allow(clippy::unused_self)]
    pub(crate) fn set(&mut self, _: f64) {}
}

/// A moment that is not kept.
#[derive(Debug, Clone)]
pub(crate) struct Moment;

impl Moment {
    pub(crate) fn new(_: &Metric<Gauge>, _: &[&str]) -> Self {
        Self
    }

    #[allow(clippy::unused_self)]
    pub(crate) fn set_now(&self) {}
}
