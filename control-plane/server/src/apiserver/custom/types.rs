//! The types in which managers may have written objects of a kind, for the record of who owns what.
//!
//! Who owns what is decided from values alone (`wherry_resources::apply`), which may want an object
//! in another version on the way. Where only a webhook can convert it, the webhook is asked for all
//! that was wanted, and the decision is taken anew, until nothing is left to ask.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use wherry_resources::apply::{BuiltIn, Types};
use wherry_resources::custom::Definition;
use wherry_resources::structure::Place;
use wherry_resources::{Kind, Object, meta};

use super::conversion;
use crate::apiserver::{ApiServer, errors::ApiError};

/// The types of one kind.
pub enum OwnTypes {
    BuiltIn(BuiltIn),
    Custom {
        /// The definitions of all served versions, by `group/version`.
        versions: Vec<(String, Arc<Definition>)>,
        /// None: they differ by name alone.
        webhook: Option<Webhook>,
    },
}

impl OwnTypes {
    /// The types of a kind.
    pub fn of(api: &ApiServer, kind: &'static Kind) -> OwnTypes {
        if kind.custom.is_none() {
            return OwnTypes::BuiltIn(BuiltIn(kind));
        }
        let catalog = api.catalog();
        let same = catalog.custom.iter().filter(|row| row.is(kind.group, kind.kind));
        let versions = same.filter_map(|row| Some((row.api_version(), row.custom()?))).collect();
        let definition = kind.custom().filter(|definition| definition.conversion.is_some());
        OwnTypes::Custom { versions, webhook: definition.map(Webhook::of) }
    }

    /// The same, as if versions differed by name alone.
    pub fn by_name(self) -> OwnTypes {
        match self {
            OwnTypes::Custom { versions, .. } => OwnTypes::Custom { versions, webhook: None },
            built_in @ OwnTypes::BuiltIn(_) => built_in,
        }
    }

    /// Decides by these types, as often as it takes.
    pub async fn decide<T>(
        mut self,
        api: &ApiServer,
        decide: impl Fn(&OwnTypes) -> T,
    ) -> Result<T, ApiError> {
        loop {
            let decided = decide(&self);
            match &mut self {
                OwnTypes::Custom { webhook: Some(webhook), .. } if webhook.is_wanted() => {
                    webhook.ask(api).await?;
                }
                _ => return Ok(decided),
            }
        }
    }
}

impl Types for OwnTypes {
    fn place(&self, api_version: &str) -> Option<Place<'_>> {
        match self {
            OwnTypes::BuiltIn(types) => types.place(api_version),
            OwnTypes::Custom { versions, .. } => {
                let found = versions.iter().find(|(version, _)| version == api_version);
                found.map(|(_, definition)| Place::custom(&definition.source))
            }
        }
    }

    fn convert(&self, object: &Object, api_version: &str) -> Option<Object> {
        let (versions, webhook) = match self {
            OwnTypes::BuiltIn(types) => return types.convert(object, api_version),
            OwnTypes::Custom { versions, webhook } => (versions, webhook),
        };
        versions.iter().find(|(version, _)| version == api_version)?;
        let own = meta::api_version(object);
        match webhook {
            // What says no version is empty in each.
            Some(webhook) if !own.is_empty() && own != api_version => {
                webhook.converted(object, api_version)
            }
            _ => {
                let mut object = object.clone();
                if let Some(map) = object.as_object_mut() {
                    map.insert("apiVersion".to_owned(), api_version.into());
                }
                Some(object)
            }
        }
    }
}

/// What a webhook has converted, and what is wanted of it.
pub struct Webhook {
    definition: Arc<Definition>,
    /// Objects, and what became of them.
    known: Vec<(Object, Object)>,
    /// Objects, and the versions in which they are wanted.
    wanted: RefCell<Vec<(Object, String)>>,
}

impl Webhook {
    fn of(definition: Arc<Definition>) -> Webhook {
        Webhook { definition, known: Vec::new(), wanted: RefCell::default() }
    }

    fn is_wanted(&self) -> bool {
        !self.wanted.borrow().is_empty()
    }

    fn converted(&self, object: &Object, version: &str) -> Option<Object> {
        let is_it =
            |(from, to): &&(Object, Object)| meta::api_version(to) == version && from == object;
        let found = self.known.iter().find(is_it);
        if found.is_none() {
            self.wanted.borrow_mut().push((object.clone(), version.to_owned()));
        }
        found.map(|(_, to)| to.clone())
    }

    async fn ask(&mut self, api: &ApiServer) -> Result<(), ApiError> {
        let mut versions: BTreeMap<String, Vec<Object>> = BTreeMap::new();
        for (object, version) in self.wanted.take() {
            versions.entry(version).or_default().push(object);
        }
        for (version, objects) in versions {
            let asked = objects.clone();
            let converted = conversion::convert(api, &self.definition, &version, asked).await?;
            self.known.extend(objects.into_iter().zip(converted));
        }
        Ok(())
    }
}
