//! The blocks of streams of hashes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::value::{RawValue, to_raw_value};

use super::{Encoding, to_json};
use crate::delivery::sse::Block;
use crate::live::LiveEvent;
use crate::names::{EventName, FieldName};

/// The block of a change, without its `id:` line, which differs from stream to stream.
pub(super) fn change(event: &LiveEvent) -> &Bytes {
    event.encoding(Encoding::Envelope as usize, || block_of(event, event.event().data.as_text()))
}

/// The same for a stream that gets these fields alone. None if the change has none of them.
pub(super) fn change_of(event: &LiveEvent, fields: &[FieldName]) -> Option<Bytes> {
    let (data, has_fields) = select(event.event().data.as_text(), fields)?;
    has_fields.then(|| block_of(event, &data))
}

fn block_of(event: &LiveEvent, data: &str) -> Bytes {
    let name = event.event().name.as_ref().map(EventName::as_str);
    Block::new().event(name).data(data).finish().into()
}

/// The block of a part of a snapshot, for a stream that gets these fields alone, if it does.
pub(in crate::delivery) fn snapshot_block(id: &str, part: &Bytes, fields: Option<&[FieldName]>) -> Bytes {
    let part = std::str::from_utf8(part).expect("a snapshot is JSON");
    let selected = fields.and_then(|fields| select(part, fields)).map(|(data, _)| data);
    let data = selected.as_deref().unwrap_or(part);
    Block::new().id(id).event(Some("hash.snapshot")).data(data).finish().into()
}

/// The data of an event with these fields alone, and whether it has any of them, or concerns all. None if it is not an
/// object.
fn select(data: &str, fields: &[FieldName]) -> Option<(String, bool)> {
    let mut members: BTreeMap<&str, Cow<'_, RawValue>> = serde_json::from_str(data).ok()?;
    let Some(all) = members.get("fields") else { return Some((data.into(), true)) };
    let is_selected = |name: &str| fields.iter().any(|field| field.as_str() == name);
    let (selected, has_fields) = if all.get().starts_with('[') {
        let mut names: Vec<Cow<'_, str>> = serde_json::from_str(all.get()).ok()?;
        names.retain(|name| is_selected(name));
        (to_raw_value(&names), !names.is_empty())
    } else {
        let mut values: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(all.get()).ok()?;
        values.retain(|name, _| is_selected(name));
        (to_raw_value(&values), !values.is_empty())
    };
    members.insert("fields", Cow::Owned(selected.ok()?));
    Some((to_json(&members), has_fields))
}
