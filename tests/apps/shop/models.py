"""What the shop sells."""

from django.db import models


class Product(models.Model):
    """Something to buy."""

    name = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=8, decimal_places=2)

    def __str__(self):
        return self.name
