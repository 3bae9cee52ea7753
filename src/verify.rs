//! Checks that snapshots are intact.
use std::time::Duration;
use crate::archive::*;
use crate::progress::Progress;
#[derive(Clone,Debug)]
/// x
pub struct DataSubset;
impl std::str::FromStr for DataSubset { type Err=String; fn from_str(_:&str)->std::result::Result<Self,String>{Ok(Self)}}
#[derive(Default)]
/// x
pub struct VerifyOptions { /// x
pub snapshots: Option<Vec<Snapshot>>, /// x
pub read_data: Option<DataSubset> }
impl VerifyOptions { /// x
pub fn read_everything()->Self {Self::default()} }
/// x
#[derive(Default)]
pub struct VerifyStats { /// x
pub snapshots:u64, /// x
pub documents:u64, /// x
pub objects:u64,/// x
pub read_bytes:u64,/// x
pub damage_count:u64,/// x
pub damage:Vec<Damage>,/// x
pub duration:Duration}
impl VerifyStats { /// x
pub fn is_intact(&self)->bool{self.damage_count==0} }
/// x
pub async fn verify(_:&Repository,_:VerifyOptions,_:&Progress)->Result<VerifyStats>{Ok(VerifyStats::default())}
