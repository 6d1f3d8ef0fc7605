# shellcheck shell=bash
# Stages 10 to 15: from data to a table of subnets. Sourced by recipe.sh, whose options and names they use.

stage_10() { log "not there yet"; }
stage_11() { log "not there yet"; }
stage_12() { log "not there yet"; }
stage_13() { log "not there yet"; }
stage_14() { log "not there yet"; }
stage_15() { log "not there yet"; }
