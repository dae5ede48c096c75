//! Roomcast: an HTTP gateway for realtime rooms and shared values.
pub mod room;
pub mod follow;
pub mod broker;
pub mod sse;
pub mod hub;
pub mod shutdown;
