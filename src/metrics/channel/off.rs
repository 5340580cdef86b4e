//! The metrics of a channel without the feature: of no size, and every call of them is gone in the binary.

#![allow(clippy::unused_self)]

use std::marker::PhantomData;

use http::Extensions;
use tokio::time::Instant;
use tonic::Code;

use super::InstanceState;
use crate::metrics::Share;

#[derive(Debug, Clone)]
pub(crate) struct ChannelMetrics;

impl ChannelMetrics {
    pub(crate) fn new(_: &str) -> Self {
        Self
    }

    pub(crate) fn call(&self, _: &Extensions, _: Instant) -> CallMetrics {
        CallMetrics
    }

    pub(crate) fn wait(&self) -> WaitFigure<'_> {
        WaitFigure(PhantomData)
    }

    pub(crate) fn on_retry_refused(&self) {}

    pub(crate) fn open(&self) -> Share {
        Share
    }

    pub(crate) fn instance(&self) -> InstanceFigure {
        InstanceFigure
    }

    pub(crate) fn unused(&self) -> UnusedFigure {
        UnusedFigure
    }

    pub(crate) fn connection(&self) -> ConnectionFigure {
        ConnectionFigure
    }

    pub(crate) fn on_connect_failed(&self) {}

    pub(crate) fn on_ejection(&self, _: &'static str) {}

    pub(crate) fn on_unenforced_ejection(&self, _: &'static str, _: &'static str) {}
}

#[derive(Debug, Default)]
pub(crate) struct CallMetrics;

impl CallMetrics {
    pub(crate) fn on_begin(&mut self) {}

    pub(crate) fn on_replay(&mut self, _: Code) {}

    pub(crate) fn on_pause(&mut self, _: Code) {}

    pub(crate) fn on_retry(&mut self) {}

    pub(crate) fn on_end(&mut self, _: Code) {}
}

#[derive(Debug)]
pub(crate) struct WaitFigure<'a>(PhantomData<&'a ()>);

#[derive(Debug)]
pub(crate) struct InstanceFigure;

impl InstanceFigure {
    pub(crate) fn set(&mut self, _: InstanceState) {}
}

#[derive(Debug)]
pub(crate) struct UnusedFigure;

impl UnusedFigure {
    pub(crate) fn set(&mut self, _: usize) {}
}

#[derive(Debug)]
pub(crate) struct ConnectionFigure;

impl ConnectionFigure {
    pub(crate) fn on_disconnected(&self, _: &'static str) {}
}

const _: () = {
    assert!(size_of::<ChannelMetrics>() == 0 && size_of::<CallMetrics>() == 0);
    assert!(size_of::<InstanceFigure>() == 0 && size_of::<ConnectionFigure>() == 0);
};
