"""The paper's reader study (App. H): people grade, blinded, how visible a finding is in a changed image."""
