-- How an agent is doing, in numbers, as of its last claim; nothing where its egress policy lets no metrics out.
ALTER TABLE agent ADD COLUMN metrics jsonb NOT NULL DEFAULT '{}';
