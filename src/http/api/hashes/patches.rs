//! The two forms of a patch: a JSON merge patch (RFC 7396) and a JSON patch (RFC 6902), both on one level.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use axum::body::Bytes;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::broker::PatchStep;
use crate::http::extract::{JsonObject, json_error, parse_json, parse_name};
use crate::http::problem::{Code, Problem};
use crate::names::FieldName;

/// The media type of a JSON patch.
pub(super) const JSON_PATCH: &str = "application/json-patch+json";

/// What a patch does.
#[derive(Debug)]
pub(super) struct Patch {
    pub steps: Vec<PatchStep>,
    /// The number of fields of a merge patch, or of operations of a JSON patch.
    pub items: usize,
}

impl Patch {
    /// Parses a JSON merge patch. `removed` are fields that the query removes.
    pub fn from_merge_patch(body: &[u8], removed: &[String]) -> Result<Self, Problem> {
        let MergePatch(mut changes) = parse_json(body)?;
        for text in removed {
            let field = parse_name("the field", text, FieldName::new)?;
            if changes.insert(field, None).is_some() {
                return Err(Problem::new(Code::InvalidQuery, format!("the patch has the field {text:?} twice")));
            }
        }
        let items = changes.len();
        let step = |(field, value)| match value {
            Some(value) => PatchStep::Set(field, value),
            None => PatchStep::Remove(field),
        };
        Ok(Self { steps: changes.into_iter().map(step).collect(), items })
    }

    /// Parses a JSON patch.
    pub fn from_json_patch(body: &[u8]) -> Result<Self, Problem> {
        let operations: Vec<JsonObject<PatchOperation>> = parse_json(body)?;
        let items = operations.len();
        let mut steps = Vec::with_capacity(items);
        for (index, JsonObject(operation)) in operations.into_iter().enumerate() {
            operation.add_steps(&mut steps).map_err(|why| {
                Problem::new(Code::InvalidBody, format!("the operation {index} of the patch: {why}"))
            })?;
        }
        Ok(Self { steps, items })
    }

    /// The values that the patch sets.
    pub fn values(&self) -> impl Iterator<Item = &Bytes> {
        self.steps.iter().filter_map(|step| if let PatchStep::Set(_, value) = step { Some(value) } else { None })
    }

    /// Whether the patch may need memory.
    pub fn writes(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, PatchStep::Set(..) | PatchStep::Copy { .. }))
    }
}

/// The fields that a patch tests.
pub(super) fn tested_fields(steps: &[PatchStep]) -> BTreeSet<FieldName> {
    let tested = |step: &PatchStep| if let PatchStep::Test(field, _) = step { Some(field.clone()) } else { None };
    steps.iter().filter_map(tested).collect()
}

/// The changes of a merge patch. A field may be there once: parsers differ in which of two values they take.
struct MergePatch(BTreeMap<FieldName, Option<Bytes>>);

impl<'de> Deserialize<'de> for MergePatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PatchVisitor;
        impl<'de> Visitor<'de> for PatchVisitor {
            type Value = MergePatch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings and nulls")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<MergePatch, A::Error> {
                let mut changes = BTreeMap::new();
                while let Some(field) = members.next_key::<FieldName>()? {
                    let value = members.next_value::<Option<String>>();
                    let value = value.map_err(|why| A::Error::custom(format!("the member `{field}`: {why}")))?;
                    if changes.contains_key(&field) {
                        return Err(A::Error::custom(format!("it has the field {field:?} twice")));
                    }
                    changes.insert(field, value.map(Bytes::from));
                }
                Ok(MergePatch(changes))
            }
        }
        deserializer.deserialize_map(PatchVisitor)
    }
}

/// An operation of a JSON patch (RFC 6902). Members that it does not use are ignored.
#[derive(Deserialize)]
struct PatchOperation {
    /// What it does.
    op: PatchOperationKind,
    /// A field: `/` and its name, in which `~1` stands for `/` and `~0` for `~`.
    path: String,
    /// For `move` and `copy`: the field whose value is taken.
    from: Option<String>,
    /// For `test`, `add` and `replace`: a string.
    value: Option<Box<RawValue>>,
}

/// What an operation of a JSON patch does.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PatchOperationKind {
    /// The patch fails unless the field has this value.
    Test,
    /// Sets the field.
    Add,
    /// Sets the field, which must exist.
    Replace,
    /// Removes the field, which must exist.
    Remove,
    /// Renames a field, which must exist.
    Move,
    /// Copies a field, which must exist.
    Copy,
}

impl PatchOperation {
    /// Adds what the operation does to the steps of a patch.
    fn add_steps(self, steps: &mut Vec<PatchStep>) -> Result<(), String> {
        let Self { op, path, from, value } = self;
        let field = field_from_pointer("path", &path)?;
        let value = || {
            let value = value.as_ref().ok_or("it needs a value, which is a string")?;
            let text = serde_json::from_str::<String>(value.get());
            text.map(Bytes::from).map_err(|why| format!("value: {}", json_error(&why.to_string())))
        };
        let from = || field_from_pointer("from", from.as_deref().ok_or("it needs from, the pointer to a field")?);
        match op {
            PatchOperationKind::Test => steps.push(PatchStep::Test(field, value()?)),
            PatchOperationKind::Add => steps.push(PatchStep::Set(field, value()?)),
            PatchOperationKind::Replace => {
                let value = value()?;
                steps.extend([PatchStep::Require(field.clone()), PatchStep::Set(field, value)]);
            }
            PatchOperationKind::Remove => {
                steps.extend([PatchStep::Require(field.clone()), PatchStep::Remove(field)]);
            }
            PatchOperationKind::Copy => steps.push(PatchStep::Copy { from: from()?, to: field }),
            PatchOperationKind::Move => match from()? {
                // Removed and added again.
                from if from == field => steps.push(PatchStep::Require(field)),
                from => {
                    steps.extend([PatchStep::Copy { from: from.clone(), to: field }, PatchStep::Remove(from)]);
                }
            },
        }
        Ok(())
    }
}

/// The field that a JSON pointer (RFC 6901) names. `member` is that of the operation.
fn field_from_pointer(member: &str, pointer: &str) -> Result<FieldName, String> {
    let Some(name) = pointer.strip_prefix('/').filter(|name| !name.contains('/')) else {
        return Err(format!("{member} must be / and the name of a field, as in /colour; ~1 in it stands for /"));
    };
    if name.split('~').skip(1).any(|rest| !rest.starts_with(['0', '1'])) {
        return Err(format!("{member} has a ~ that is neither ~0, which stands for ~, nor ~1, which stands for /"));
    }
    let name = name.replace("~1", "/").replace("~0", "~");
    FieldName::new(&name).map_err(|why| format!("{member}: {name:?} is not a valid name: {why}"))
}
